#!lua flags=allow-oom
-- Moves deltas out of an outbox that `open` set aside to the current one, under their own identity,
-- and drops those beside them that the ledger has.
--
-- KEYS  1 meta · 2 outbox · 3 the outbox that was set aside
-- ARGV  1 fence text · 2 seen sequence and time · 3 epoch · 4 epoch of KEYS[3]
--       5 its sequence up to which the ledger was asked · 6... those up to there that it has not
-- Reply {0, last sequence of the outbox, entries moved, whether any are left} · {2, f, seq}
--
-- Invariants: an entry lies in one of the two, never in both or in neither, so each is moved once,
--   whoever asks, and how often. No counter moves: while an outbox is listed in `lt`, or what came
--   out of it (up to `lm`) is not acknowledged, no account of the bucket is seeded, and a seed
--   afterwards has it from the ledger. What it changed of configurations is in force: this Redis
--   wrote both at once. The list names it until it is empty.
-- Complexity: O(entries asked for).
-- include: base, journal, append, fence
local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'lt', 'lm')
local stop = fenced(M[1], M[2], M[3])
if stop then
  return stop
end
local seq, entries = tonumber(M[2]) or 0, {}
for i = 6, #ARGV do
  local id = ARGV[4] .. '-' .. ARGV[i]
  local found = call('XRANGE', KEYS[3], id, id)[1]
  if found then
    entries[#entries + 1] = found[2]
  end
end
local isLeft = call('XRANGE', KEYS[3], '(' .. ARGV[4] .. '-' .. ARGV[5], '+', 'COUNT', 1)[1]
local fields, old = {}, {}
if #entries > 0 then
  fields = {'seq', int(seq + #entries), 'lm', int(seq + #entries)}
  old = {M[2], M[5]}
end
if not isLeft then
  local rest = {}
  for e in string.gmatch(M[4] or '', '%S+') do
    if e ~= ARGV[4] then
      rest[#rest + 1] = e
    end
  end
  fields[#fields + 1], fields[#fields + 2] = 'lt', table.concat(rest, ' ')
  old[#old + 1] = M[4]
end
if #fields > 0 then
  set(KEYS[1], fields, old)
end
local function appended(n, r)
  if type(r) == 'table' and r.err then
    if n > 0 then
      unappend(KEYS[2], ARGV[3], seq, n)
    end
    abort(r)
  end
end
for i = 1, #entries do
  appended(i - 1, try('XADD', KEYS[2], ARGV[3] .. '-' .. int(seq + i), unpack(entries[i])))
end
if isLeft then
  appended(#entries,
    try('XTRIM', KEYS[3], 'MINID', ARGV[4] .. '-' .. int(tonumber(ARGV[5]) + 1)))
else
  appended(#entries, try('UNLINK', KEYS[3]))
end
return {0, int(seq + #entries), #entries, isLeft and 1 or 0}
