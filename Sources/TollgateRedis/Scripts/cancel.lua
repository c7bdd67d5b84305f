#!lua flags=allow-oom
-- Annuls an operation of unknown outcome by its id, so that whatever happened has no effect and
-- whatever may still arrive finds its id taken. Idempotent.
--
-- KEYS, ARGV: those of the `decide` call it annuls.
-- Reply {0, record, now}: annulled now; {1, record}: it was a denial or annulled before;
--       {2, f, seq} {3, word} {4} {5} {8} {10}
--
-- Invariants: counters lose exactly what the operation added, in the period that admitted it, or
--   nothing where that period is no longer held; every delta gets one reversal (index 64 + item,
--   negative numbers). May run when memory is full: it takes back.
-- Complexity: O(cells + items).
local _, seen, e, epoch, _, _, opTime, _, window, _, _, class, slice = decode(ARGV[3])
local bytesField = class == 'm' and 'om' or 'ov'
local sliceField = class .. format('%.0f', slice)
local M = call('HMGET', KEYS[1], 'f', 'seq', 't', bytesField, sliceField,
  class == 'm' and 'hm' or 'hv')
local seq = tonumber(M[2]) or 0
if M[1] ~= ARGV[1] or seq < seen then
  return {2, M[1], M[2]}
end
local now = max(clock(), tonumber(M[3]) or 0)
local ms = floor(now / 1000)
if ms - opTime > window or opTime < (tonumber(M[6]) or 0) then
  return {4}
end
if opTime - ms > 60000 then
  return {5}
end
local id, print = sub(ARGV[2], 1, 16), sub(ARGV[2], 17, 32)
local recordKey = KEYS[3]
local record = call('HGET', recordKey, id)
if not record then
  record = call('HGET', KEYS[4], id)
  if record then
    recordKey = KEYS[4]
  end
end
local births, mask, answer = 0, 0, nil
local P, cells, itemsAt
if record then
  for word = 0, 3 do
    local at = word * 4
    if sub(record, at + 1, at + 4) ~= sub(print, at + 1, at + 4) then
      return {3, word}
    end
  end
  local O = {decode(sub(record, 17))}
  if O[1] >= 16 then
    return {1, record}
  end
  if call('HGET', KEYS[5], 'e') ~= e then
    return {8}
  end
  P = {decode(ARGV[4])}
  local at = 5
  for _ = 1, P[1] do
    at = at + 1 + P[at]
  end
  cells = at
  itemsAt = cells + P[2] * 5 + P[3] * 9
  for i = 1, P[4] do
    if P[itemsAt + (i - 1) * 3 + 1] == 1 then
      mask = mask + 2 ^ (i - 1)
      births = births + 1
    end
  end
  -- Reason, epoch and first sequence of the reversals, their index offset, no binding, no retry.
  O[1], O[5], O[6], O[7], O[8] = 28, epoch, births > 0 and seq + 1 or 0, mask, 64
  O[9], O[10], O[11] = 0, '', -1
  answer = print .. encode(unpack(O))
else
  answer = print .. encode(28, ms, 0, 0, epoch, 0, 0, 0, 0, '', -1, 0)
end

local changes = {}
if P then
  -- Fields of hash k start at F[k]; `decide` put two of its own in front of them.
  local F, at = {}, 5
  for k = 1, P[1] do
    F[k] = at + 1
    at = at + 1 + P[at]
  end
  for c = 1, P[2] do
    local b = cells + (c - 1) * 5
    local k = P[b]
    local key = k == 1 and KEYS[5] or KEYS[k + 5]
    local field = P[F[k] + P[b + 1] - 1]
    local row = call('HMGET', key, 'e', field)
    if row[1] == e and row[2] then
      local cell = {decode(row[2])}
      local amount = P[itemsAt + (P[b + 4] - 1) * 3]
      if cell[1] == P[b + 2] then
        cell[2] = cell[2] - amount
      elseif cell[5] == P[b + 2] then
        cell[6] = cell[6] - amount
      end
      if cell[2] < -LARGEST or cell[6] < -LARGEST then
        return {10}
      end
      changes[#changes + 1] = {key, {field, encode(unpack(cell, 1, 7))}, {row[2]}}
    end
  end
end
for i = 1, #changes do
  set(unpack(changes[i]))
end
set(recordKey, {id, answer}, {record})
if not M[5] then
  write(nil, 'PEXPIREAT', KEYS[3], int((slice + 1) * 120000 + 90000000))
end
local grown = #answer - (record and #record or -80)
set(KEYS[1], {'seq', int(seq + births), 't', int(now), bytesField,
  int((tonumber(M[4]) or 0) + grown), sliceField, int((tonumber(M[5]) or 0) + grown)},
  {M[2], M[3], M[4], M[5]})
local appended = 0
for i = 1, births > 0 and P[4] or 0 do
  if P[itemsAt + (i - 1) * 3 + 1] == 1 then
    local amount = -P[itemsAt + (i - 1) * 3]
    local r = try('XADD', KEYS[2], e .. '-' .. format('%.0f', seq + appended + 1), 'd',
      id .. encode(2, 64 + i - 1, ms, amount, amount, 0), 'b', ARGV[5 + appended])
    if type(r) == 'table' then
      if appended > 0 then
        unappend(KEYS[2], e, seq, appended)
      end
      abort(r)
    end
    appended = appended + 1
  end
end
return {0, answer, int(ms)}
