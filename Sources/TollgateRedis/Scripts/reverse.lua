#!lua flags=allow-oom
-- Takes back the counter effect of one delta that the ledger had already (DUPLICATE), once.
--
-- KEYS  1 meta · 2 marks: the positions taken back that the ledger's acknowledgement has not passed
--       3 account header · 4... hashes of deeper subjects
-- ARGV  1 fence text · 2 seen sequence and time
--       3 MessagePack: epoch, the entry's epoch and sequence, number of cells, and per cell: key
--         number (1 = KEYS[3]), field, start, what the delta added to it
-- Reply {0} reversed · {1} nothing to do · {2, f, seq} · {8} not seeded in this epoch · {10}
--
-- Invariants: per stream position at most once; no delta. What meta.ack has passed was taken back
--   before it moved. Counters of a later epoch were seeded from the ledger, which counted the delta
--   once: then there is nothing to take back.
-- Complexity: O(cells).
-- include: base, journal, fence
local A = {decode(ARGV[3])}
local epoch, entryEpoch, entrySeq, cells = unpack(A, 1, 4)
local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'ack')
local stop = fenced(M[1], M[2], M[3])
if stop then
  return stop
end
if entryEpoch ~= epoch or entrySeq <= (tonumber(M[4]) or 0) then
  return {1}
end
local e, mark = format('%.0f', epoch), int(entrySeq)
if call('ZSCORE', KEYS[2], mark) then
  return {1}
end
if call('HGET', KEYS[3], 'e') ~= e then
  return {8}
end
local changes = {}
for c = 1, cells do
  local b = 4 + (c - 1) * 4
  local key, field, start, amount = KEYS[2 + A[b + 1]], A[b + 2], A[b + 3], A[b + 4]
  local row = call('HMGET', key, 'e', field)
  if row[1] == e and row[2] then
    local cell = {decode(row[2])}
    if cell[1] == start then
      cell[2] = cell[2] - amount
      -- Nothing can be forgiven that was not counted; of a grant that place holds what came over.
      if cell[4] > 0 and cell[4] > cell[2] and not string.find(field, '|$', 1, true) then
        cell[4] = max(0, cell[2])
      end
    elseif cell[5] == start then
      cell[6] = cell[6] - amount
    end
    if cell[2] < -LARGEST or cell[6] < -LARGEST or cell[2] > LARGEST or cell[6] > LARGEST then
      return {10}
    end
    changes[#changes + 1] = {key, {field, encode(unpack(cell, 1, cell[8] and 8 or 7))}, {row[2]}}
  end
end
for i = 1, #changes do
  set(unpack(changes[i]))
end
write(nil, 'ZADD', KEYS[2], mark, mark)
return {0}
