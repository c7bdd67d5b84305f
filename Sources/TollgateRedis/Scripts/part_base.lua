-- What every script begins with. The other parts (part_*.lua) are put where a script names them in a
-- line `-- include: name, ...`, and only there: what a call does not use it does not pay for, and a
-- part named inside a branch costs nothing until the branch is taken.
--
-- Invariants that all scripts keep:
--   * The fence is compared first; then everything is validated; only then is anything written.
--   * Writes go through `try` (redis.pcall). When one fails, the ones before it are undone in
--     reverse from values read earlier, and the error is raised: a failed call changed nothing.
--   * The clock is read once. Time never runs backwards for a bucket: max(TIME, meta.t).
--   * Quantities are whole and within 2^53 - 1. They are stored by cmsgpack (exact integers) or
--     as text by `int`, every digit; never by tostring or '..', which round to 14 digits.
--
-- Reply codes (first element of an array reply):
--   0 done · 1 done before · 2 fenced · 3 mismatch · 4 id too old · 5 id from the future
--   6 expired · 7 stale · 8 rebuild · 9 period passed · 10 overflow · 11 conflict
--   12 counted: the bodies of what was counted are wanted
--   13 outbox full · 14 the reservation is not there, has ended, or does not allow this
--   15 the epoch is young · 16 holds are to be brought into the epoch first · 17 holds are due
--   18 a plan is wanted
local call, try = redis.call, redis.pcall
local encode, decode = cmsgpack.pack, cmsgpack.unpack
local floor, max, format, sub = math.floor, math.max, string.format, string.sub
local LARGEST = 9007199254740991
local DAY, NEVER = 86400000, 9007199254740991
-- A deeper subject that counts without an end is kept for 30 days after the day of its last count.
local IDLE = 31 * DAY

-- Microseconds since 1970.
local function clock()
  local t = call('TIME')
  return t[1] * 1000000 + t[2]
end
