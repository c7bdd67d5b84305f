#!lua
-- Decides one operation, and in the same step remembers it, counts it and bears its deltas.
-- The same text under the flag no-writes is the script `check`.
--
-- KEYS  1 meta · 2 outbox · 3 operation slice · 4 the slice in the other class · 5 account header
--       6 index of deeper subjects, 7... their hashes (only where the plan reads any)
-- ARGV  1 fence text · 2 operation id (16 bytes) and fingerprint (4 x 4 bytes)
--       3 MessagePack: mode (0 consume, 1 check, 2 post), seen sequence, epoch as text
--         and as number, global version,
--         account version, operation time ms, not after ms (0: none), dedupe window ms, bytes of
--         records allowed, outbox entries allowed, class letter, slice number
--       4 the plan (layout in DecidePlan.swift) · 5... one delta body per metered item
-- Reply a record (bulk string, layout in DecideReply.swift): decided; or an array
--       {1, record} {2, f, seq} {3, word} {4} {5} {6, now} {7, gv, v, cfg} {8} {9, now} {10, item}
--
-- Invariants: a hard limit is never exceeded by `consume`; a denial moves no counter and no
--   arrival time; every metered item of an allowed operation bears exactly one delta; meta.seq is
--   the last sequence in the outbox; of an id at most one record exists.
-- Complexity: O(cells + limits + items); one call per hash read or written, one per delta.
local mode, seen, e, epoch, gv, av, opTime, notAfter, window, bytesMax, outMax, class, slice =
  decode(ARGV[3])
local CHECK, POST = 1, 2
local bytesField = class == 'm' and 'om' or 'ov'
local sliceField = class .. format('%.0f', slice)

local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'gv', 'ack', 'nb', bytesField, sliceField,
  class == 'm' and 'hm' or 'hv')
local seq = tonumber(M[2]) or 0
if M[1] ~= ARGV[1] or seq < seen then
  return {2, M[1], M[2]}
end
local now = max(clock(), tonumber(M[3]) or 0)
local ms = floor(now / 1000)

-- The age of the id, then its record. It may lie in the other class: another body under this id,
-- or a catalog that changed the feature's importance since.
local id = sub(ARGV[2], 1, 16)
local recordKey, record = KEYS[3], false
if mode ~= CHECK then
  if ms - opTime > window or opTime < (tonumber(M[9]) or 0) then
    return {4}
  end
  if opTime - ms > 60000 then
    return {5}
  end
  record = call('HGET', recordKey, id)
  if not record then
    record = call('HGET', KEYS[4], id)
    if record then
      recordKey = KEYS[4]
    end
  end
  if record then
    if sub(record, 1, 16) ~= sub(ARGV[2], 17, 32) then
      for word = 0, 3 do
        local at = word * 4
        if sub(record, at + 1, at + 4) ~= sub(ARGV[2], at + 17, at + 20) then
          return {3, word}
        end
      end
    end
    if mode ~= POST then
      return {1, record}
    end
    -- Units let through elsewhere count although this id was denied here, or was annulled before
    -- it ever came; where it had been applied its delta ids are spent.
    local reason, _, _, _, _, _, _, offset = decode(sub(record, 17))
    if reason < 16 or offset == 64 then
      return {1, record}
    end
  end
end
if notAfter > 0 and ms > notAfter then
  return {6, int(ms)}
end

-- Configuration, then the account's epoch, then the periods.
local P = {decode(ARGV[4])}
local hashes, cells, limits, items = P[1], P[2], P[3], P[4]
local at = 6
local R, F = {}, {at}
R[1] = call('HMGET', KEYS[5], 'e', 'v', unpack(P, at, at + P[5] - 1))
if tonumber(M[4]) ~= gv or (R[1][2] and tonumber(R[1][2]) ~= av) then
  local cfg = tonumber(R[1][2]) ~= av and call('HGET', KEYS[5], 'cfg')
  return {7, M[4] or '0', R[1][2], cfg}
end
if R[1][1] ~= e then
  return {8}
end
at = at + P[5]
for k = 2, hashes do
  F[k] = at + 1
  R[k] = call('HMGET', KEYS[k + 5], 'e', 'x', unpack(P, at + 1, at + P[at]))
  at = at + 1 + P[at]
end
local cellsAt = at
for c = 0, cells - 1 do
  local b = cellsAt + c * 5
  if ms < P[b + 2] or ms >= P[b + 3] then
    return {9, int(ms)}
  end
end
local limitsAt = cellsAt + cells * 5
local itemsAt = limitsAt + limits * 9

-- A cell: start, settled, held, forgiven, and the period before: start, settled, held.
local C = {}
for c = 1, cells do
  local b = cellsAt + (c - 1) * 5
  local hash, start = P[b], P[b + 2]
  local row = R[hash]
  local raw = row[1] == e and row[P[b + 1] + 2]
  local cell
  if raw then
    cell = {decode(raw)}
    if cell[1] < start then
      cell = {start, 0, 0, 0, cell[1], cell[2], cell[3]}
    end
  else
    cell = {start, 0, 0, 0, 0, 0, 0}
  end
  C[c] = cell
end

-- What each limit says. T: arrival times; D: limits that would deny.
local T, D, rates = {}, {}, false
local hardReason, hardLeft, hardLimit, hardRetry
local softReason, softLeft, softLimit
for l = 1, limits do
  local b = limitsAt + (l - 1) * 9
  local kind = P[b]
  local reason, left, retry = nil, 0, -1
  if kind == 1 then
    local cell = C[P[b + 4]]
    local room = P[b + 5] - (cell[2] - cell[4] + cell[3])
    if room < P[itemsAt + (P[b + 1] - 1) * 3] then
      reason, left = 22, max(0, room)
      retry = P[cellsAt + (P[b + 4] - 1) * 5 + 3] - ms
    end
  elseif kind == 2 then
    local row = R[P[b + 4]]
    local raw = row[1] == e and row[P[b + 5] + 2]
    local tat = now
    if raw then
      tat = max(tonumber(raw), now)
    elseif M[6] then
      -- Rebuilt: a rate starts without burst at the instant the epoch was opened.
      tat = max(M[6] + P[b + 7], now)
    end
    T[l], rates = tat, true
    local wait = tat + P[b + 6] - now - P[b + 7]
    if wait > 0 then
      reason, left = 23, max(0, floor((P[b + 7] - (tat - now)) / P[b + 8]))
      retry = floor((wait + 999) / 1000)
    end
  elseif kind == 0 then
    reason = P[b + 4]
  end
  if reason then
    D[l] = true
    local enforcement = P[b + 2]
    if enforcement == 0 then
      if not hardReason or reason < hardReason or (reason == hardReason and left < hardLeft) then
        hardReason, hardLeft, hardLimit, hardRetry = reason, left, b, retry
      end
    elseif not softReason or enforcement < softReason
      or (enforcement == softReason and left < softLeft) then
      softReason, softLeft, softLimit = enforcement, left, b
    end
  end
end

local reason, binding, retry = 0, nil, -1
local mask, births = 0, 0
if mode == POST then
  reason = 4
elseif hardReason then
  reason, binding, retry = hardReason, hardLimit, hardRetry
elseif softReason then
  reason, binding = softReason, softLimit
end
if reason < 16 then
  for i = 1, items do
    if P[itemsAt + (i - 1) * 3 + 1] == 1 then
      mask = mask + 2 ^ (i - 1)
      births = births + 1
    end
  end
  if mode == 0 and births > 0 and seq + births - (tonumber(M[5]) or 0) > outMax then
    reason, binding, retry, mask, births = 24, nil, -1, 0, 0
  end
end
-- Money is denied at the ceiling; volume shortens its window (sweep), and is denied only where
-- that does not keep up.
local bytes = tonumber(M[7]) or 0
local full = mode == 0 and bytes >= bytesMax and (class == 'm' or bytes >= bytesMax * 1.25)
if full then
  reason, binding, retry, mask, births = 25, nil, -1, 0, 0
end

-- Count, in memory first.
local allowed = reason < 16 and mode ~= CHECK
if allowed then
  for c = 1, cells do
    local item = P[cellsAt + (c - 1) * 5 + 4]
    local cell = C[c]
    local settled = cell[2] + P[itemsAt + (item - 1) * 3]
    if settled > LARGEST then
      return {10, item}
    end
    cell[2] = settled
  end
  if mode == 0 and rates then
    for l = 1, limits do
      if T[l] and not D[l] then
        T[l] = T[l] + P[limitsAt + (l - 1) * 9 + 6]
      end
    end
  end
end

-- The record: the answer, and what a replay gives again.
local first = births > 0 and mode ~= CHECK and seq + 1 or 0
local answer = sub(ARGV[2], 17, 32) .. encode(reason, ms, gv, av, epoch, first,
  mode == CHECK and 0 or mask, 0, binding and P[binding + 1] or 0,
  binding and P[binding + 3] or '', retry, items)
for i = 1, items do
  local least, limit, settled, held, reset
  for l = 1, limits do
    local b = limitsAt + (l - 1) * 9
    if P[b + 1] == i then
      local kind = P[b]
      if kind == 1 then
        local cell = C[P[b + 4]]
        local used = cell[2] - cell[4]
        local left = max(0, P[b + 5] - used - cell[3])
        if not least or left < least then
          least, limit, settled, held = left, P[b + 3], used, cell[3]
          reset = P[cellsAt + (P[b + 4] - 1) * 5 + 3]
        end
      elseif kind == 2 then
        local tat = T[l]
        local left = max(0, floor((P[b + 7] - (tat - now)) / P[b + 8]))
        if not least or left < least then
          least, limit, settled, held = left, P[b + 3], 0, 0
          reset = floor((tat + 999) / 1000)
        end
      end
    end
  end
  if not least then
    least, limit, settled, held, reset = -1, '', 0, 0, -1
    local billing = P[itemsAt + (i - 1) * 3 + 2]
    if billing > 0 then
      local cell = C[billing]
      settled, held = cell[2] - cell[4], cell[3]
    end
  end
  answer = answer .. encode(limit, least, settled, held, reset)
end
if mode == CHECK or full then
  return answer
end

-- Commit. What each hash gets: W[k] = {field, value, ...}; all text of numbers is made before the
-- first write, because `int` may refuse.
local W, expiry = {}, {}
if allowed then
  for c = 1, cells do
    local b = cellsAt + (c - 1) * 5
    local k, cell = P[b], C[c]
    local field = P[F[k] + P[b + 1] - 1]
    local packed = encode(cell[1], cell[2], cell[3], cell[4], cell[5], cell[6], cell[7])
    local w = W[k]
    if w then
      local n = #w
      w[n + 1], w[n + 2] = field, packed
    else
      W[k] = {field, packed}
    end
    if k > 1 then
      expiry[k] = max(expiry[k] or 0, lifetime(P[b + 3]))
    end
  end
  if mode == 0 and rates then
    for l = 1, limits do
      local tat = T[l]
      if tat and not D[l] then
        local b = limitsAt + (l - 1) * 9
        local k = P[b + 4]
        local field = P[F[k] + P[b + 5] - 1]
        local w = W[k]
        if w then
          local n = #w
          w[n + 1], w[n + 2] = field, int(tat)
        else
          W[k] = {field, int(tat)}
        end
        if k > 1 then
          expiry[k] = max(expiry[k] or 0, (floor((now + P[b + 7]) / 1000 / DAY) + 2) * DAY)
        end
      end
    end
  end
end
local grown = #answer - (record and #record or -80)
local newSeq, newTime, newBytes = int(seq + births), int(now), int(bytes + grown)
local newSlice = int((tonumber(M[8]) or 0) + grown)
local sliceEnd = not M[8] and int((slice + 1) * 120000 + 90000000)

-- Deeper subjects that are new, of an older epoch, or that live longer now: rare, through the
-- journal of the prelude, before everything else.
for k = 2, hashes do
  local w = W[k]
  if w then
    local row = R[k]
    local key = KEYS[k + 5]
    local before = row[1] == e and tonumber(row[2]) or 0
    local later = max(before, expiry[k])
    if row[1] ~= e then
      local flat = {'e', e, 'x', int(later)}
      for i = 1, #w do
        flat[i + 4] = w[i]
      end
      local stale = row[1] and write(nil, 'PEXPIRETIME', key) or 0
      replace(key, flat)
      touch(KEYS[6], key, max(stale, 0), later, ms)
      W[k] = false
    elseif later > before then
      set(key, {'x', int(later)}, {row[2]})
      touch(KEYS[6], key, before, later, ms)
    end
  end
end

-- The usual writes, which keep no journal: `hashesDone`, `recordDone`, `metaDone` and `appended`
-- say what a failure has to take back.
local failure
local hashesDone, recordDone, metaDone, appended = 0, false, false, 0
repeat
  local r
  for k = 1, hashes do
    local w = W[k]
    if w then
      r = try('HSET', k == 1 and KEYS[5] or KEYS[k + 5], unpack(w))
      if type(r) == 'table' then
        failure = r
        break
      end
    end
    hashesDone = k
  end
  if failure then
    break
  end
  r = try('HSET', recordKey, id, answer)
  if type(r) == 'table' then
    failure = r
    break
  end
  recordDone = true
  if sliceEnd then
    r = try('PEXPIREAT', KEYS[3], sliceEnd)
    if type(r) == 'table' then
      failure = r
      break
    end
  end
  r = try('HSET', KEYS[1], 'seq', newSeq, 't', newTime, bytesField, newBytes, sliceField, newSlice)
  if type(r) == 'table' then
    failure = r
    break
  end
  metaDone = true
  if births > 0 then
    for i = 1, items do
      local at = itemsAt + (i - 1) * 3
      if P[at + 1] == 1 then
        local amount = P[at]
        r = try('XADD', KEYS[2], e .. '-' .. format('%.0f', seq + appended + 1), 'd',
          id .. encode(1, i - 1, ms, amount, amount, 0), 'b', ARGV[5 + appended])
        if type(r) == 'table' then
          failure = r
          break
        end
        appended = appended + 1
      end
    end
  end
until true
if not failure then
  return answer
end

-- Undo, last write first, from the values read at the start.
local function restore(key, fields, was)
  for i = 1, #fields do
    if was[i] then
      try('HSET', key, fields[i], was[i])
    else
      try('HDEL', key, fields[i])
    end
  end
end
if appended > 0 then
  unappend(KEYS[2], e, seq, appended)
end
if metaDone then
  restore(KEYS[1], {'seq', 't', bytesField, sliceField}, {M[2], M[3], M[7], M[8]})
end
if recordDone then
  restore(recordKey, {id}, {record})
end
for k = hashesDone, 1, -1 do
  if W[k] then
    local row, fields, was = R[k], {}, {}
    for f = 1, #row - 2 do
      fields[f], was[f] = P[F[k] + f - 1], row[f + 2]
    end
    restore(k == 1 and KEYS[5] or KEYS[k + 5], fields, was)
  end
end
abort(failure)
