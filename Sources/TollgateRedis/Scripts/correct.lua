#!lua
-- Corrects what an earlier operation, or nobody's, was charged: moves the counters that the plan
-- names by what it says, and bears one delta for each feature, all of it or nothing.
--
-- KEYS  1 meta · 2 outbox · 3 account header · 4 audit · 5 corrected operations, by their latest
--       correction · 6 operation slice · 7 the slice in the other class · 8, 9 the same of the operation
--       corrected · 10... deeper subjects
-- ARGV  1 fence text · 2 seen sequence and time · 3 id (16 bytes) and fingerprint (4 x 4 bytes)
--       4 MessagePack: epoch as text and as number, time of the id ms, dedupe window ms, class letter
--         and number of the slice, record bytes and outbox entries allowed, kind of the deltas,
--         reason, global version, account version, when it was looked ms (0: this is the look),
--         what the look found, number of shares
--       5 operation corrected (16 bytes, or none)
--       6 what the record says beside the numbers · 7 body of a config delta (empty: none)
--       then per share
--         · MessagePack: what is charged more or less, what is absorbed less, time ms of the
--           delta corrected, billing counter (0: none), number of counters, per counter: key (0:
--           account header, 1... KEYS[10]...), field, start, end, change · delta body
--           Before the counters: what was owed as it was worked out (less than any counter: not
--           looked at), and whether it only moves units from a debt to grants (1)
-- Reply {0, record, now} · {1, record} · {2, f, seq} {3, word} {4} {5} {8}
--       {10} a counter would leave its range, or the bill fall below zero by an adjustment
--       {11} somebody else corrected or annulled the operation since the look, or paid what is owed · {12, mark, seq, ack, now} the
--       look: the ledger has everything once ack has passed seq · {13} no room
--
-- Invariants: of one operation two corrections are never worked out from the same books: the mark of
--   an operation (KEYS[5], ms, one more than before at least) is compared and moved in this call, and
--   is kept longer than a look is good for. An operation that is remembered and was corrected is not
--   annulled any more: a field behind its record says so to `cancel`. Counters move in the delta's own period, where it is held
--   still; an adjustment also makes the account's counter of a period that a seed would make.
-- Complexity: O(counters + shares).
-- include: base, journal, hashes, append, fence, tell
local LOOK, MARK = 60000, 600000
local e, epoch, opTime, window, class, slice, bytesMax, outMax, kind, reason, gv, av, looked, mark,
  shares = decode(ARGV[4])
local sliceField = class .. format('%.0f', slice)
local other = (class == 'm' and 'v' or 'm') .. format('%.0f', slice)
local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'ack', 'om', 'ov', 'hm', 'hv', sliceField, other)
local stop = fenced(M[1], M[2], M[3])
if stop then
  return stop
end
local seq, ack = tonumber(M[2]) or 0, tonumber(M[4]) or 0
local now = max(clock(), tonumber(M[3]) or 0)
local ms = floor(now / 1000)
if ms - opTime > window or opTime < (tonumber(class == 'm' and M[7] or M[8]) or 0) then
  return {4}
end
if opTime - ms > 60000 then
  return {5}
end
local id, print = sub(ARGV[3], 1, 16), sub(ARGV[3], 17, 32)
local record = call('HGET', KEYS[6], id) or call('HGET', KEYS[7], id)
if record then
  for word = 0, 3 do
    local at = word * 4
    if sub(record, at + 1, at + 4) ~= sub(print, at + 1, at + 4) then
      return {3, word}
    end
  end
  return {1, record}
end
local corrected = ARGV[5]
local last = corrected ~= '' and tonumber(call('ZSCORE', KEYS[5], corrected)) or 0
if looked == 0 then
  return {12, int(last), int(seq), int(ack), int(ms)}
end
if last ~= mark or ms - looked > LOOK then
  return {11}
end
-- Where it is remembered still: annulled since the look, it has nothing left.
local home, marked
for k = 8, corrected ~= '' and 9 or 7 do
  local found = call('HGET', KEYS[k], corrected)
  if found then
    if decode(sub(found, 17)) == 28 then
      return {11}
    end
    home, marked = KEYS[k], call('HGET', KEYS[k], corrected .. 'r')
  end
end
if call('HGET', KEYS[3], 'e') ~= e then
  return {8}
end
local births = shares + (ARGV[7] ~= '' and 1 or 0)
local bytes = tonumber(M[class == 'm' and 5 or 6]) or 0
if seq + births - ack > outMax or bytes >= bytesMax then
  return {13}
end

-- Look first. Cells by hash and field, as they will be: two shares may name one in two periods.
local rows, fields, order = {}, {}, {}
local states, born, mask = '', {}, 0
for s = 1, shares do
  local P = {decode(ARGV[6 + s * 2])}
  local charged, absorbed, time, billing = P[1], P[2], P[3], P[4]
  local settled, held = 0, 0
  for c = 1, P[5] do
    local b = c * 5 + 3
    local key, name, start, change = KEYS[P[b] == 0 and 3 or 9 + P[b]], P[b + 1], P[b + 2], P[b + 4]
    local current = rows[key]
    if current == nil then
      current = call('HGET', key, 'e') == e
      rows[key] = current
    end
    local place = key .. ' ' .. name
    local cell = fields[place]
    if cell == nil then
      local raw = current and call('HGET', key, name)
      cell = {raw = raw, key = key, name = name, v = raw and {decode(raw)} or false, moved = false}
      fields[place] = cell
      order[#order + 1] = cell
    end
    local v = cell.v
    if P[6] >= -LARGEST and string.sub(name, -2) == '|-' and P[6] ~= (v and v[2] or 0) then
      return {11}
    end
    -- Only an adjustment can be the first of its period.
    local fresh = kind == 5 and P[b] == 0 and lifetime(name, start, P[b + 3], ms) > ms
    if v and v[1] == start then
      v[2] = v[2] + change
      -- Units that a reset had forgiven are forgiven no more: limits see what they saw. What came
      -- over into a grant's instance is no reset.
      if change < 0 and v[4] ~= 0 and (not v[8] or time <= v[8])
        and not string.find(name, '|$', 1, true) then
        v[4] = v[4] + change
      end
    elseif v and v[5] == start then
      v[6] = v[6] + change
    elseif v and fresh and v[1] < start then
      v = {start, change, 0, 0, v[1], v[2], v[3]}
    elseif v and fresh and v[5] < start then
      v[5], v[6], v[7] = start, change, 0
    elseif not v and fresh then
      v = {start, change, 0, 0, 0, 0, 0}
    else
      v = nil
    end
    if P[7] == 1 and change < 0 and v and (v[1] == start and v[2] or v[6]) < 0 then
      return {11}
    end
    if v then
      if v[2] < -LARGEST or v[6] < -LARGEST or v[2] > LARGEST or v[6] > LARGEST then
        return {10}
      end
      if c == billing then
        if kind == 5 and change < 0 and (v[1] == start and v[2] or v[6]) < 0 then
          return {10}
        end
        if v[1] == start then
          settled, held = v[2] - v[4], v[3]
        else
          settled, held = v[6], v[7]
        end
      end
      cell.v, cell.moved = v, true
    end
  end
  states = states .. encode('', -1, settled, held, -1)
  mask = mask + 2 ^ (s - 1)
  born[s * 2 - 1] = id .. encode(kind, s - 1, ms, charged + absorbed, charged, absorbed)
  born[s * 2] = ARGV[7 + s * 2]
end
if ARGV[7] ~= '' then
  born[births * 2 - 1] = id .. encode(3, 128, ms, 0, 0, 0)
  born[births * 2] = ARGV[7]
end
local answer = print .. encode(reason, ms, gv, av, epoch, seq + 1, mask, 0, 0, '', -1, shares)
  .. states .. encode(0) .. ARGV[6]

for i = 1, #order do
  local cell = order[i]
  if cell.moved then
    set(cell.key, {cell.name, encode(unpack(cell.v, 1, cell.v[8] and 8 or 7))}, {cell.raw})
  end
end
if home then
  set(home, {corrected .. 'r', ''}, {marked})
end
if corrected ~= '' then
  local life = write(nil, 'PEXPIRETIME', KEYS[5])
  local old = write(nil, 'ZRANGE', KEYS[5], '-inf', int(ms - MARK), 'BYSCORE', 'LIMIT', 0, 16,
    'WITHSCORES')
  write(last > 0 and {'ZADD', KEYS[5], int(last), corrected} or {'ZREM', KEYS[5], corrected},
    'ZADD', KEYS[5], int(max(ms, last + 1)), corrected)
  for i = 1, #old, 2 do
    if old[i] ~= corrected then
      write({'ZADD', KEYS[5], old[i + 1], old[i]}, 'ZREM', KEYS[5], old[i])
    end
  end
  write(life > 0 and {'PEXPIREAT', KEYS[5], life} or nil, 'PEXPIREAT', KEYS[5], int(ms + MARK))
end
set(KEYS[6], {id, answer}, {false})
if not M[9] then
  write(nil, 'PEXPIREAT', KEYS[6], int((slice + 1) * 120000 + 90000000))
end
local grown = #answer + 80
set(KEYS[1], {'seq', int(seq + births), 't', int(now), class == 'm' and 'om' or 'ov',
  int(bytes + grown), sliceField, int((tonumber(M[9]) or 0) + grown)},
  {M[2], M[3], M[class == 'm' and 5 or 6], M[9]})
tell(string.match(KEYS[3], ':a:([^/]*)'))
local appended = 0
local function append(...)
  local r = try(...)
  if type(r) == 'table' and r.err then
    if appended > 0 then
      unappend(KEYS[2], e, seq, appended)
    end
    abort(r)
  end
end
for i = 1, births do
  append('XADD', KEYS[2], e .. '-' .. format('%.0f', seq + i), 'd', born[i * 2 - 1], 'b', born[i * 2])
  appended = i
end
if ARGV[7] ~= '' then
  append('XADD', KEYS[4], 'MAXLEN', '~', '10000', '*', 't', int(ms), 'b', ARGV[7], 'o', id)
end
return {0, answer, int(ms)}
