#!lua flags=allow-oom
-- Takes back the counter effect of one delta that the ledger had already (DUPLICATE), once.
--
-- KEYS  1 meta · 2 the money slice of the entry's birth time, where the marker lies
--       3 account header · 4... hashes of deeper subjects
-- ARGV  1 fence text · 2 seen sequence · 3 MessagePack: epoch, the entry's epoch and sequence, its
--       slice, amount, number of cells, and per cell: key number (1 = KEYS[3]), field, start
-- Reply {0} reversed · {1} nothing to do · {2, f, seq} · {8} not seeded in this epoch · {10}
--
-- Invariants: per stream position at most once; no delta. Counters of a later epoch were seeded
--   from the ledger, which counted the delta once: then there is nothing to take back.
-- Complexity: O(cells).
local A = {decode(ARGV[3])}
local epoch, entryEpoch, entrySeq, slice, amount, cells = unpack(A, 1, 6)
local sliceField = 'm' .. format('%.0f', slice)
local M = call('HMGET', KEYS[1], 'f', 'seq', 'om', sliceField)
local stop = fenced(M[1], M[2])
if stop then
  return stop
end
if entryEpoch ~= epoch then
  return {1}
end
local e = format('%.0f', epoch)
local marker = 'r' .. e .. '-' .. format('%.0f', entrySeq)
if call('HEXISTS', KEYS[2], marker) == 1 then
  return {1}
end
if call('HGET', KEYS[3], 'e') ~= e then
  return {8}
end
local changes = {}
for c = 1, cells do
  local b = 6 + (c - 1) * 3
  local key, field, start = KEYS[2 + A[b + 1]], A[b + 2], A[b + 3]
  local row = call('HMGET', key, 'e', field)
  if row[1] == e and row[2] then
    local cell = {decode(row[2])}
    if cell[1] == start then
      cell[2] = cell[2] - amount
      -- Nothing can be forgiven that was not counted.
      if cell[4] > 0 and cell[4] > cell[2] then
        cell[4] = max(0, cell[2])
      end
    elseif cell[5] == start then
      cell[6] = cell[6] - amount
    end
    if cell[2] < -LARGEST or cell[6] < -LARGEST then
      return {10}
    end
    changes[#changes + 1] = {key, {field, encode(unpack(cell, 1, cell[8] and 8 or 7))}, {row[2]}}
  end
end
for i = 1, #changes do
  set(unpack(changes[i]))
end
set(KEYS[2], {marker, ''}, {false})
if not M[4] then
  write(nil, 'PEXPIREAT', KEYS[2], int((slice + 1) * 120000 + 90000000))
end
set(KEYS[1], {'om', int((tonumber(M[3]) or 0) + 80), sliceField, int((tonumber(M[4]) or 0) + 80)},
  {M[3], M[4]})
return {0}
