#!lua
-- Sets what limits see of one cell, by changing what is forgiven; what is billed does not move.
--
-- KEYS  1 meta · 2 outbox · 3 account header · 4 audit · 5 index and 6 hash of a deeper subject
-- ARGV  1 fence text · 2 seen sequence · 3 epoch · 4 operation id · 5 field · 6 start · 7 end
--       8 value · 9 delta body
-- Reply {0, epoch, sequence, now, before, after} · {1} applied before under this id
--       {2, f, seq} · {8} · {9, now} · {10}
--
-- Invariants: settled is untouched; the config delta carries the change (actual = absorbed =
--   after - before, charged 0). Safe against deltas in flight: they add to settled, and the offset
--   stays. The audit entry is the last write. Complexity: O(1).
local M = call('HMGET', KEYS[1], 'f', 'seq', 't')
local stop = fenced(M[1], M[2])
if stop then
  return stop
end
local H = call('HMGET', KEYS[3], 'e', 'rop')
if remembers(H[2], ARGV[4]) then
  return {1}
end
local e = ARGV[3]
if H[1] ~= e then
  return {8}
end
local now = max(clock(), tonumber(M[3]) or 0)
local ms = floor(now / 1000)
local first, last, value = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
if ms < first or ms >= last then
  return {9, int(ms)}
end
local key = KEYS[6] or KEYS[3]
local row = call('HMGET', key, 'e', 'x', ARGV[5])
local current = row[1] == e
local cell = {first, 0, 0, 0, 0, 0, 0}
if current and row[3] then
  cell = {decode(row[3])}
  if cell[1] < first then
    cell = {first, 0, 0, 0, cell[1], cell[2], cell[3]}
  end
end
local before = cell[2] - cell[4]
cell[4], cell[8] = cell[2] - value, ms
if cell[4] > LARGEST or cell[4] < -LARGEST then
  return {10}
end
local packed = encode(unpack(cell, 1, 8))
if KEYS[6] then
  local life = lifetime(last)
  if not current then
    local stale = max(call('PEXPIRETIME', key), 0)
    replace(key, {'e', e, 'x', int(life), ARGV[5], packed})
    touch(KEYS[5], key, stale, life, ms)
  else
    set(key, {ARGV[5], packed}, {row[3]})
    local old = tonumber(row[2]) or 0
    if life > old then
      set(key, {'x', int(life)}, {row[2]})
      touch(KEYS[5], key, old, life, ms)
    end
  end
else
  set(key, {ARGV[5], packed}, {row[3]})
end
local seq = tonumber(M[2]) or 0
local sequence = int(seq + 1)
local change = value - before
set(KEYS[3], {'rop', remember(H[2], ARGV[4])}, {H[2]})
set(KEYS[1], {'seq', sequence, 't', int(now)}, {M[2], M[3]})
write(nil, 'XADD', KEYS[2], e .. '-' .. sequence, 'd',
  ARGV[4] .. encode(3, 0, ms, change, 0, change), 'b', ARGV[9])
local r = try('XADD', KEYS[4], 'MAXLEN', '~', '10000', '*', 't', int(ms), 'b', ARGV[9])
if type(r) == 'table' then
  unappend(KEYS[2], e, seq, 1)
  abort(r)
end
return {0, e, sequence, int(ms), int(before), int(value)}
