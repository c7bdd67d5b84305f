#!lua
-- Appends a configuration delta of an epoch that is over to the current outbox, under its own
-- identity, and puts it in force where nothing newer stands.
--
-- KEYS  1 meta · 2 outbox · 3 marks · 4 account header, or the global configuration
--       5 hash of a deeper subject, where that one's counter was changed
-- ARGV  1 fence text · 2 seen sequence and time
--       3 MessagePack: epoch, index, time ms, actual, charged, absorbed, scope (0 global, 1 account,
--         2 counter), version, field and start of the counter (empty and 0: none)
--       4 operation id (16 bytes) · 5 body · 6 configuration (JSON) · 7 the change to remember
-- Reply {0, sequence, now} · {1, sequence} it lies in this epoch's outbox already · {2, f, seq}
--       {8} not seeded in this epoch (counters only) · {10}
--
-- Invariants: a version only grows: of two changes made from the same state, one of them lost for
--   a while, the higher version stands, and of equal ones that which stands already; the ledger
--   orders them alike. A counter's change moves the period it was made in, if that is the current one.
--   Once per epoch: a mark stands until the acknowledgement has passed the entry, and from then on
--   the ledger says that it has it. Complexity: O(1).
-- include: base, journal, changes, fence, header, tell
local epoch, index, time, actual, charged, absorbed, scope, version, field, start = decode(ARGV[3])
local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'gv')
local stop = fenced(M[1], M[2], M[3])
if stop then
  return stop
end
local mark = 'c' .. ARGV[4]
local there = call('ZSCORE', KEYS[3], mark)
if there then
  return {1, there}
end
local now = max(clock(), tonumber(M[3]) or 0)
local seq = tonumber(M[2]) or 0
local sequence = int(seq + 1)
local e = format('%.0f', epoch)
local changed, fields, old
if scope == 2 then
  if call('HGET', KEYS[4], 'e') ~= e then
    return {8}
  end
  local key = KEYS[5] or KEYS[4]
  local row = call('HMGET', key, 'e', field)
  local cell = row[1] == e and row[2] and {decode(row[2])}
  if cell and cell[1] == start then
    cell[4] = cell[4] - actual
    if cell[4] > LARGEST or cell[4] < -LARGEST then
      return {10}
    end
    cell[8] = max(cell[8] or 0, time)
    changed, fields, old = key, {field, encode(unpack(cell, 1, 8))}, {row[2]}
  end
else
  local name = scope == 0 and 'version' or 'v'
  local H = call('HMGET', KEYS[4], name, 'cfg')
  if version > (tonumber(H[1]) or -1) then
    changed, fields, old = KEYS[4], {name, int(version), 'cfg', ARGV[6]}, H
  end
end
stays(KEYS[4])
if changed then
  set(changed, fields, old)
end
-- Its id is known again: sent once more, the change is not made a second time.
local memory = write(nil, 'HGET', KEYS[4], 'op')
set(KEYS[4], {'op', joined(memory, ARGV[7])}, {memory})
if changed and scope == 0 and version > (tonumber(M[4]) or -1) then
  set(KEYS[1], {'seq', sequence, 't', int(now), 'gv', int(version)}, {M[2], M[3], M[4]})
else
  set(KEYS[1], {'seq', sequence, 't', int(now)}, {M[2], M[3]})
end
write({'ZREM', KEYS[3], mark}, 'ZADD', KEYS[3], sequence, mark)
if changed then
  tell(string.match(KEYS[4], ':a:([^/]*)') or '*')
end
write(nil, 'XADD', KEYS[2], e .. '-' .. sequence, 'd',
  ARGV[4] .. encode(3, index, time, actual, charged, absorbed), 'b', ARGV[5])
return {0, sequence, int(floor(now / 1000))}
