#!lua flags=allow-oom
-- Annuls an operation of unknown outcome by its id, so that whatever happened has no effect and
-- whatever may still arrive finds its id taken. Idempotent, and final: a post counts no more.
--
-- KEYS  1 meta · 2 outbox · 3 operation slice · 4 the slice in the other class · 5 account header
--       6... hashes of the deeper subjects, from level 2 to the subject's own
-- ARGV  1 fence text · 2 seen sequence and time · 3 id (16 bytes) and fingerprint (4 x 4 bytes)
--       4 MessagePack: epoch as text and as number, time of the id ms, dedupe window ms, class
--         letter and number of the slice, number of items, per item: feature, amount
--       5... delta bodies, one per metered item that was counted; none where it is not known
-- Reply {0, record, now}: annulled now; {1, record}: it was a denial, annulled before, or corrected;
--       {12, record}: it was counted as the record says, call again with the bodies of its
--       reversals; {2, f, seq} {3, word} {4} {5} {8} {10}
--
-- Invariants: counters lose exactly what the operation's record says it added, in the periods that
--   admitted it, or nothing where a period is no longer held, whatever plan or time it is now;
--   every delta gets one reversal (index 64 + item, negative numbers). Arrival times of rates are
--   not given back. May run when memory is full: it takes back.
-- Complexity: O(cells + items).
-- include: base, journal, append, fence
local A = {decode(ARGV[4])}
local e, epoch, opTime, window, class, slice, items = unpack(A, 1, 7)
local sliceField = class .. format('%.0f', slice)
local other = (class == 'm' and 'v' or 'm') .. format('%.0f', slice)
local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'om', 'ov', 'hm', 'hv', sliceField, other)
local stop = fenced(M[1], M[2], M[3])
if stop then
  return stop
end
local seq = tonumber(M[2]) or 0
local now = max(clock(), tonumber(M[3]) or 0)
local ms = floor(now / 1000)
if ms - opTime > window or opTime < (tonumber(class == 'm' and M[6] or M[7]) or 0) then
  return {4}
end
if opTime - ms > 60000 then
  return {5}
end
local id, print = sub(ARGV[3], 1, 16), sub(ARGV[3], 17, 32)
local recordKey, field, bytes, sliceBytes = KEYS[3], sliceField, M[class == 'm' and 4 or 5], M[8]
local record = call('HGET', recordKey, id)
if not record then
  record = call('HGET', KEYS[4], id)
  if record then
    recordKey, field, bytes, sliceBytes = KEYS[4], other, M[class == 'm' and 5 or 4], M[9]
  end
end
local bytesField = sub(field, 1, 1) == 'm' and 'om' or 'ov'

-- What it added, {item from 0, level, field, start, amount} each; what of each item was billed.
local births, answer, O, counted = 0, nil, nil, nil
local added, billed = {}, {}
for item = 0, items - 1 do
  billed[item] = A[9 + item * 2]
end
if record then
  for word = 0, 3 do
    local at = word * 4
    if sub(record, at + 1, at + 4) ~= sub(print, at + 1, at + 4) then
      return {3, word}
    end
  end
  O = {decode(sub(record, 17))}
  -- What was corrected was acted on: what is left of it is for a refund to give back.
  if O[1] >= 16 or call('HEXISTS', recordKey, id .. 'r') == 1 then
    return {1, record}
  end
  local mask = O[7]
  while mask > 0 do
    births = births + mask % 2
    mask = floor(mask / 2)
  end
  if #ARGV - 4 ~= births then
    return {12, record}
  end
  if call('HGET', KEYS[5], 'e') ~= e then
    return {8}
  end
  counted = 12 + O[12] * 5
  -- Reason, epoch and first sequence of the reversals, their index offset, no binding, no retry.
  answer = print .. encode(28, O[2], O[3], O[4], epoch, births > 0 and seq + 1 or 0, O[7], 64, 0, '',
    -1, unpack(O, 12, counted))
  if O[counted + 1] == -1 then
    -- As `transact` recorded it (DecideReply.swift).
    items = O[counted + 4]
    local at, names = counted + 5, {}
    answer = answer .. encode(-1, 0, O[counted + 3], items)
    for item = 0, items - 1 do
      names[item], billed[item] = O[at], O[at + 2]
      answer = answer .. encode(O[at], 0, 0)
      at = at + 3
    end
    answer = answer .. encode(0, 0, 0)
    at = at + 1 + O[at] * 3
    for c = 1, O[at] do
      local b = at + c * 6 - 5
      added[c] = {O[b], O[b + 1], names[O[b]] .. '|' .. O[b + 2], O[b + 3], O[b + 5],
        sub(O[b + 2], 1, 1) == '$'}
    end
  else
    for c = 1, O[counted + 1] do
      local b = counted + c * 5 - 3
      added[c] = {O[b], O[b + 1], A[8 + O[b] * 2] .. '|' .. O[b + 2], O[b + 3], billed[O[b]]}
    end
  end
else
  answer = print .. encode(28, ms, 0, 0, epoch, 0, 0, 0, 0, '', -1, 0)
end

-- Look first: cells by hash and field, as they will be.
local changes = {}
for c = 1, #added do
  local _, level, name, start, amount, isGrant = unpack(added[c], 1, 6)
  local key = KEYS[4 + level]
  local row = call('HMGET', key, 'e', name)
  if row[1] == e and row[2] then
    local cell = {decode(row[2])}
    if cell[1] == start then
      cell[2] = cell[2] - amount
      -- Units that a reset had forgiven are forgiven no more: limits see what they saw. What came
      -- over into a grant's instance is no reset.
      if not isGrant and cell[4] ~= 0 and (not cell[8] or O[2] <= cell[8]) then
        cell[4] = cell[4] - amount
      end
    elseif cell[5] == start then
      cell[6] = cell[6] - amount
    end
    if cell[2] < -LARGEST or cell[6] < -LARGEST or cell[2] > LARGEST or cell[6] > LARGEST then
      return {10}
    end
    changes[#changes + 1] = {key, {name, encode(unpack(cell, 1, cell[8] and 8 or 7))}, {row[2]}}
  end
end
for i = 1, #changes do
  set(unpack(changes[i]))
end
set(recordKey, {id, answer}, {record})
if not sliceBytes then
  write(nil, 'PEXPIREAT', recordKey, int((slice + 1) * 120000 + 90000000))
end
local grown = #answer - (record and #record or -80)
set(KEYS[1], {'seq', int(seq + births), 't', int(now), bytesField,
  int((tonumber(bytes) or 0) + grown), field, int((tonumber(sliceBytes) or 0) + grown)},
  {M[2], M[3], bytes, sliceBytes})
local appended = 0
for i = 0, births > 0 and items - 1 or -1 do
  if floor(O[7] / 2 ^ i) % 2 == 1 then
    local amount = -billed[i]
    local r = try('XADD', KEYS[2], e .. '-' .. format('%.0f', seq + appended + 1), 'd',
      id .. encode(2, 64 + i, ms, amount, amount, 0), 'b', ARGV[5 + appended])
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
