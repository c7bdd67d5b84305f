-- Holds. `P h:<account>` (KEYS[HOLDS]) has the live ones by reservation id, `P hx:<account>`
-- (KEYS[HOLDS + 1]) when each ends by itself, `P hb` (KEYS[HOLDS + 2]) each account's first of these,
-- which its header has too (`hn`), so that whoever touches the account sees what is due.
-- Needs: journal.
--
-- A hold is a run of: state (0 held, 1 committed, 2 released, 3 expired), created, expires, overrun
-- (0 reject, 1 clamp, 2 overdraft), bound, subject, number of items asked for, the epoch in which its
-- counts were added (in a later one they are not there), how often it was settled in part, and the
-- numbers of
--   items     feature, estimate, what is left of it, metered (0, 1), start and end of its bill, what is
--             owed of it beyond everything
--   counts    item, level, window code, start, end, tally, what is held there, of a grant what had
--             come over into its instance
--   pricings  source, target, portion, num, den, window code, start, end, rate, from
-- Tallies: 0 units, 1 overage, 2 in flight, 3 grant, 4 priced, 5 deficit. Counts of one item's
-- grants stand in the order of burning.
local GRACE, LATE = 5000, 86400000

local function run(flat, at, n, size)
  local list = {}
  for i = 1, n do
    list[i] = {unpack(flat, at + 1, at + size)}
    at = at + size
  end
  return list, at
end

local function readHold(bytes)
  local flat = {decode(bytes)}
  local hold = {
    state = flat[1], created = flat[2], expires = flat[3], overrun = flat[4], bound = flat[5],
    subject = flat[6], asked = flat[7], epoch = flat[8], settles = flat[9],
  }
  local at
  hold.items, at = run(flat, 12, flat[10], 7)
  hold.counts, at = run(flat, at, flat[11], 8)
  hold.pricings = run(flat, at, flat[12], 10)
  return hold
end

local function packHold(hold)
  local flat = {
    hold.state, hold.created, hold.expires, hold.overrun, hold.bound, hold.subject, hold.asked,
    hold.epoch, hold.settles, #hold.items, #hold.counts, #hold.pricings,
  }
  for _, list in ipairs({hold.items, hold.counts, hold.pricings}) do
    for i = 1, #list do
      for k = 1, #list[i] do
        flat[#flat + 1] = list[i][k]
      end
    end
  end
  return encode(unpack(flat))
end

-- The field of a hold's count.
local function fieldIn(hold, count)
  return hold.items[count[1]][1] .. '|' .. count[3]
end

-- What it holds is free again. False: a counter would leave the quantity range.
local function free(hold, epoch)
  for i = 1, #hold.counts do
    local c = hold.counts[i]
    if c[7] ~= 0 and hold.epoch == epoch then
      local name = fieldIn(hold, c)
      load(c[2], {name})
      if not add(c[2], name, c[4], c[5], 0, -c[7], c[8]) then
        return false
      end
    end
    c[7] = 0
  end
  return true
end

-- What is held for longer is counted for longer: a deeper subject does not go before its hold.
local function renew(hold)
  for i = 1, #hold.counts do
    local c = hold.counts[i]
    if c[2] > 1 and c[5] >= NEVER - DAY and c[7] ~= 0 then
      add(c[2], fieldIn(hold, c), c[4], c[5], 0, 0, c[8])
    end
  end
end

-- Writes a live hold (nil: it is none any more) and when it ends.
local function keepHold(reservation, packed, ends, was)
  local holds, dates = KEYS[HOLDS], KEYS[HOLDS + 1]
  local score = write(nil, 'ZSCORE', dates, reservation)
  local back = score and {'ZADD', dates, score, reservation} or {'ZREM', dates, reservation}
  if packed then
    set(holds, {reservation, packed}, {was})
    write(back, 'ZADD', dates, int(ends), reservation)
  else
    write({'HSET', holds, reservation, was}, 'HDEL', holds, reservation)
    write(back, 'ZREM', dates, reservation)
  end
end

-- Brings the account's first end up to date. `hn`: as the header has it.
local function schedule(account, hn)
  local first = write(nil, 'ZRANGE', KEYS[HOLDS + 1], 0, 0, 'WITHSCORES')[2]
  if first == hn or not first and not hn then
    return
  end
  local due = KEYS[HOLDS + 2]
  -- A seed leaves the header without its word of what stands here.
  local was = write(nil, 'ZSCORE', due, account)
  local back = was and {'ZADD', due, was, account} or {'ZREM', due, account}
  if first then
    set(KEYS[LEVELS + 1], {'hn', first}, {hn})
    write(back, 'ZADD', due, first, account)
  else
    write({'HSET', KEYS[LEVELS + 1], 'hn', hn}, 'HDEL', KEYS[LEVELS + 1], 'hn')
    write(back, 'ZREM', due, account)
  end
end

-- How a reservation ended, for as long as anybody may still ask. Expired ones stay whole: what was
-- used of them is charged when it becomes known.
local function bury(key, reservation, bytes, till)
  local was = write(nil, 'HGET', key, reservation)
  local life = write(nil, 'PEXPIRETIME', key)
  set(key, {reservation, bytes}, {was})
  local ends = max(life, till)
  if ends > life then
    write(life > 0 and {'PEXPIREAT', key, life} or nil, 'PEXPIREAT', key, int(ends))
  end
end
