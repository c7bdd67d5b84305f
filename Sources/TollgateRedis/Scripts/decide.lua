#!lua
-- Decides operations of one bucket, one after another, and in the same step remembers them, counts
-- them and bears their deltas. Each is judged by itself, on what those before it leave behind;
-- what is written is written at the end for all of them, or not at all.
-- The same text under the flag no-writes is the script `check`.
--
-- KEYS  1 meta · 2 outbox · then, each once: operation slices, account headers, indexes of deeper
--       subjects and the hashes of these (only where a plan reads any)
-- ARGV  1 fence text
--       2 MessagePack: seen sequence, epoch as text and as number, dedupe window ms, bytes of
--         records allowed for money and for volume, outbox entries allowed, number of operations,
--         number of slices; per slice: key, class letter, number
--       then per operation
--         · id (16 bytes), fingerprint (4 x 4 bytes), MessagePack: mode (0 consume, 1 check,
--           2 post), global version, account version, time of the id ms, not after ms (0: none),
--           its slice, the slice in the other class, number of bodies, key of the account header,
--           and where deeper hashes are read: key of the index, keys of the hashes
--         · the plan (layout in DecidePlan.swift) · one delta body per metered item
-- Reply {2, f, seq}: nothing was looked at; or an array with one answer per operation:
--       a record (bulk string, layout in DecideReply.swift): decided; or an array
--       {1, record} {3, word} {4} {5} {6, now} {7, gv, v, cfg} {8} {9, now} {10, item}
--
-- Invariants: a hard limit is never exceeded by `consume`; a denial moves no counter and no
--   arrival time; every metered item of an allowed operation bears exactly one delta; meta.seq is
--   the last sequence in the outbox; of an id at most one record exists.
-- Complexity: O(cells + limits + items) over all operations; one call per hash or slice read, one
--   per hash or slice written, one per delta.
local CHECK, POST = 1, 2
local A = {decode(ARGV[2])}
local seen, e, epoch, window, moneyMax, volumeMax, outMax, count, sliceCount = unpack(A, 1, 9)
local ceiling = {m = moneyMax, v = volumeMax}

-- Slices of operation records, by id: as found, then as they will be. `ids`: asked for; `writes`:
-- id, what it was.
local slices, sliceFields = {}, {}
for s = 1, sliceCount do
  local at = 7 + s * 3
  local class, number = A[at + 1], A[at + 2]
  local field = class .. format('%.0f', number)
  slices[s] = {
    key = KEYS[A[at]], class = class, number = number, field = field, ids = {}, records = {},
    writes = {}, grown = 0,
  }
  sliceFields[s] = field
end

local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'gv', 'ack', 'nb', 'om', 'ov', 'hm', 'hv',
  unpack(sliceFields))
local seq = tonumber(M[2]) or 0
if M[1] ~= ARGV[1] or seq < seen then
  return {2, M[1], M[2]}
end
local gv, acked = tonumber(M[4]), tonumber(M[5]) or 0
local bytes = {m = tonumber(M[7]) or 0, v = tonumber(M[8]) or 0}
local horizon = {m = tonumber(M[9]) or 0, v = tonumber(M[10]) or 0}
local now = max(clock(), tonumber(M[3]) or 0)
local ms = floor(now / 1000)
-- The last sequence given out so far, and what the entries will hold: data, body, data, body …
local last, born = seq, {}

-- The operations, and in one read per slice the records of their ids. A record may lie in the
-- other class: another body under the id, or a catalog that changed the feature's importance.
local operations, at = {}, 3
for i = 1, count do
  local op = {decode(sub(ARGV[at], 33))}
  op.id, op.at = sub(ARGV[at], 1, 16), at
  operations[i] = op
  at = at + 2 + op[8]
  if op[1] ~= CHECK then
    local own, other = slices[op[6]].ids, slices[op[7]].ids
    own[#own + 1] = op.id
    other[#other + 1] = op.id
  end
end
for s = 1, sliceCount do
  local slice = slices[s]
  local ids = slice.ids
  if #ids > 0 then
    local found = call('HMGET', slice.key, unpack(ids))
    for i = 1, #ids do
      slice.records[ids[i]] = found[i]
    end
  end
end

-- Hashes as far as they were read: by field the text as found (false: absent), a cell once it was
-- looked at, an arrival time once it was moved. `writes`: field, what it was, its cell or nil. A
-- deeper hash of an older epoch counts as empty.
local rows, order = {}, {}
local function read(k, second, P, from, n)
  local row = rows[k]
  if not row then
    local found = call('HMGET', KEYS[k], 'e', second, unpack(P, from, from + n - 1))
    row = {key = KEYS[k], e = found[1], second = found[2], writes = {}, expiry = 0, index = false}
    local current = found[1] == e
    for i = 1, n do
      row[P[from + i - 1]] = current and found[i + 2]
    end
    rows[k] = row
    order[#order + 1] = row
    return row
  end
  local missing
  for i = from, from + n - 1 do
    if row[P[i]] == nil then
      missing = missing or {}
      missing[#missing + 1] = P[i]
    end
  end
  if missing then
    local found = row.e == e and call('HMGET', row.key, unpack(missing))
    for i = 1, #missing do
      row[missing[i]] = found and found[i]
    end
  end
  return row
end

-- A cell: start, settled, held, forgiven, and the period before: start, settled, held; then when
-- it was last reset (nil: never); here also the text it was read from and whether it is to be
-- written. It is brought to the period that holds now; that is stored only where something is
-- added to it.
local function cellOf(row, field, start)
  local cell = row[field]
  if type(cell) ~= 'table' then
    if cell then
      local a, b, c, d, f, g, h, i = decode(cell)
      cell = {a, b, c, d, f, g, h, i, cell, false}
    else
      cell = {start, 0, 0, 0, 0, 0, 0, nil, false, false}
    end
    row[field] = cell
  end
  if cell[1] < start then
    cell[1], cell[2], cell[3], cell[4], cell[5], cell[6], cell[7], cell[8] =
      start, 0, 0, 0, cell[1], cell[2], cell[3], nil
  end
  return cell
end

local wrote = {}
local function judge(op)
  local mode, id, print = op[1], op.id, sub(ARGV[op.at], 17, 32)
  local opTime, notAfter = op[4], op[5]
  local home, record = slices[op[6]], false
  local class = home.class
  if mode ~= CHECK then
    if ms - opTime > window or opTime < horizon[class] then
      return {4}
    end
    if opTime - ms > 60000 then
      return {5}
    end
    record = home.records[id]
    if not record then
      record = slices[op[7]].records[id]
      if record then
        home = slices[op[7]]
      end
    end
    if record then
      if sub(record, 1, 16) ~= print then
        for word = 0, 3 do
          local at = word * 4
          if sub(record, at + 1, at + 4) ~= sub(print, at + 1, at + 4) then
            return {3, word}
          end
        end
      end
      if mode ~= POST then
        return {1, record}
      end
      -- Units let through elsewhere count although this id was denied here; not where it was
      -- counted already, and not after its caller annulled it (28).
      local reason = decode(sub(record, 17))
      if reason < 16 or reason == 28 then
        return {1, record}
      end
    end
  end
  if notAfter > 0 and ms > notAfter then
    return {6, int(ms)}
  end

  -- Configuration, then the account's epoch, then the periods.
  local P = {decode(ARGV[op.at + 1])}
  local hashes, cells, limits, items = P[1], P[2], P[3], P[4]
  local at = 6
  local R, F = {}, {at}
  local header = read(op[9], 'v', P, at, P[5])
  local version = tonumber(header.second)
  if gv ~= op[2] or (version and version ~= op[3]) then
    local cfg = version ~= op[3] and call('HGET', header.key, 'cfg')
    return {7, M[4] or '0', header.second, cfg}
  end
  -- Of an account that was only looked at nothing is counted: good enough to look again.
  if header.e ~= e and (mode ~= CHECK or header.e ~= e .. '?') then
    return {8}
  end
  R[1] = header
  at = at + P[5]
  for k = 2, hashes do
    F[k] = at + 1
    R[k] = read(op[9 + k], 'x', P, at + 1, P[at])
    R[k].index = op[10]
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

  local C = {}
  for c = 1, cells do
    local b = cellsAt + (c - 1) * 5
    C[c] = cellOf(R[P[b]], P[F[P[b]] + P[b + 1] - 1], P[b + 2])
  end

  -- What each limit says. T: arrival times; D: limits that would deny.
  local T, D, rates, unknown = {}, {}, false, false
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
        -- No time helps where one request asks for more than a whole period has.
        local ends = P[cellsAt + (P[b + 4] - 1) * 5 + 3]
        if ends < NEVER and P[itemsAt + (P[b + 1] - 1) * 3] <= P[b + 5] then
          retry = ends - ms
        end
      end
    elseif kind == 2 then
      local raw = R[P[b + 4]][P[F[P[b + 4]] + P[b + 5] - 1]]
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
      unknown = unknown or reason == 18
    end
    if reason then
      D[l] = true
      local enforcement = P[b + 2]
      if enforcement == 0 then
        if not hardReason or reason < hardReason
          or (reason == hardReason and left < hardLeft) then
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
    -- A feature that the catalog does not know has no counter to be posted to.
    reason = unknown and 18 or 4
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
    if mode == 0 and births > 0 and last + births - acked > outMax then
      reason, binding, retry, mask, births = 24, nil, -1, 0, 0
    end
  end
  -- Money is denied at the ceiling; volume shortens its window (sweep), and is denied only where
  -- that does not keep up.
  local full = mode == 0 and bytes[class] >= ceiling[class]
    and (class == 'm' or bytes[class] >= ceiling[class] * 1.25)
  if full then
    reason, binding, retry, mask, births = 25, nil, -1, 0, 0
  end

  -- Count, in memory: everything may still be refused, so first look, then add.
  if reason < 16 and mode ~= CHECK then
    for c = 1, cells do
      local item = P[cellsAt + (c - 1) * 5 + 4]
      if C[c][2] + P[itemsAt + (item - 1) * 3] > LARGEST then
        return {10, item}
      end
    end
    for l = 1, mode == 0 and rates and limits or 0 do
      local b = limitsAt + (l - 1) * 9
      if T[l] and not D[l] and T[l] + P[b + 6] > LARGEST then
        return {10, P[b + 1]}
      end
    end
    for c = 1, cells do
      local b = cellsAt + (c - 1) * 5
      local k, cell = P[b], C[c]
      local settled = cell[2] + P[itemsAt + (P[b + 4] - 1) * 3]
      cell[2] = settled
      if not cell[10] then
        cell[10] = true
        local w = R[k].writes
        local n = #w
        w[n + 1], w[n + 2], w[n + 3] = P[F[k] + P[b + 1] - 1], cell[9], cell
      end
      if k > 1 then
        R[k].expiry = max(R[k].expiry, lifetime(P[b + 3]))
      end
    end
    for l = 1, mode == 0 and rates and limits or 0 do
      if T[l] and not D[l] then
        local b = limitsAt + (l - 1) * 9
        local k = P[b + 4]
        local field = P[F[k] + P[b + 5] - 1]
        local was = R[k][field]
        T[l] = T[l] + P[b + 6]
        R[k][field] = T[l]
        if type(was) ~= 'number' then
          local w = R[k].writes
          local n = #w
          w[n + 1], w[n + 2], w[n + 3] = field, was, false
        end
        if k > 1 then
          R[k].expiry = max(R[k].expiry, (floor((now + P[b + 7]) / 1000 / DAY) + 2) * DAY)
        end
      end
    end
  end

  -- The record: the answer, and what a replay gives again.
  local first = births > 0 and mode ~= CHECK and last + 1 or 0
  local answer = print .. encode(reason, ms, gv, op[3], epoch, first,
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
            reset = reset < NEVER and reset or -1
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
  -- A refusal that is not about what was asked passes by itself: the same id may come again.
  if mode == CHECK or reason == 17 or reason == 24 or full or (mode == POST and unknown) then
    return answer
  end
  if reason < 16 then
    answer = answer .. P[itemsAt + items * 3]
  end

  if not wrote[id] then
    wrote[id] = true
    local w = home.writes
    w[#w + 1], w[#w + 2] = id, home.records[id]
  end
  home.records[id] = answer
  local grown = #answer - (record and #record or -80)
  home.grown, bytes[home.class] = home.grown + grown, bytes[home.class] + grown
  local body = op.at + 2
  for i = 1, births > 0 and items or 0 do
    local item = itemsAt + (i - 1) * 3
    if P[item + 1] == 1 then
      last = last + 1
      born[#born + 1] = id .. encode(1, i - 1, ms, P[item], P[item], 0)
      born[#born + 1] = ARGV[body]
      body = body + 1
    end
  end
  return answer
end

local replies = {}
for i = 1, count do
  replies[i] = judge(operations[i])
end

if not next(wrote) then
  return replies
end

-- Commit. What is written, as flat lists of fields and values, and what it replaces; all text of
-- numbers is made before the first write, because `int` may refuse.
local meta, metaWas = {'seq', int(last), 't', int(now)}, {M[2], M[3]}
for s = 1, sliceCount do
  local slice = slices[s]
  local w = slice.writes
  if #w > 0 then
    local flat, was = {}, {}
    for i = 1, #w, 2 do
      flat[i], flat[i + 1], was[(i + 1) / 2] = w[i], slice.records[w[i]], w[i + 1]
    end
    local n, m, had = #meta, #metaWas, M[10 + s]
    slice.flat, slice.was = flat, was
    slice.ends = not had and int((slice.number + 1) * 120000 + 90000000)
    meta[n + 1], meta[n + 2] = slice.field, int((tonumber(had) or 0) + slice.grown)
    meta[n + 3], meta[n + 4] = slice.class == 'm' and 'om' or 'ov', int(bytes[slice.class])
    metaWas[m + 1], metaWas[m + 2] = had, M[slice.class == 'm' and 7 or 8]
  end
end
for r = 1, #order do
  local row = order[r]
  local w = row.writes
  if #w > 0 then
    local flat, was, n = {}, {}, 0
    for i = 1, #w, 3 do
      local cell = w[i + 2]
      flat[n + 1] = w[i]
      flat[n + 2] = cell and encode(unpack(cell, 1, cell[8] and 8 or 7)) or int(row[w[i]])
      n = n + 2
      was[n / 2] = w[i + 1]
    end
    row.flat, row.was = flat, was
  end
end

-- Deeper subjects that are new, of an older epoch, or that live longer now: rare, through the
-- journal of the prelude, before everything else.
for r = 1, #order do
  local row = order[r]
  if row.flat and row.index then
    local before = row.e == e and tonumber(row.second) or 0
    local later = max(before, row.expiry)
    if row.e ~= e then
      local flat = {'e', e, 'x', int(later), unpack(row.flat)}
      local stale = row.e and write(nil, 'PEXPIRETIME', row.key) or 0
      replace(row.key, flat)
      touch(KEYS[row.index], row.key, max(stale, 0), later, ms)
      row.flat = nil
    elseif later > before then
      set(row.key, {'x', int(later)}, {row.second})
      touch(KEYS[row.index], row.key, before, later, ms)
    end
  end
end

-- The usual writes, which keep no journal: what was done is counted, and a failure takes it back
-- from the values read, last write first.
local hashesDone, slicesDone, metaDone, appended = 0, 0, false, 0
local function commit()
  for i = 1, #order do
    local row = order[i]
    if row.flat then
      local r = try('HSET', row.key, unpack(row.flat))
      if type(r) == 'table' then
        return r
      end
    end
    hashesDone = i
  end
  for i = 1, sliceCount do
    local slice = slices[i]
    if slice.flat then
      local r = try('HSET', slice.key, unpack(slice.flat))
      if type(r) == 'table' then
        return r
      end
      slicesDone = i
      r = slice.ends and try('PEXPIREAT', slice.key, slice.ends)
      if type(r) == 'table' then
        return r
      end
    end
  end
  local r = try('HSET', KEYS[1], unpack(meta))
  if type(r) == 'table' then
    return r
  end
  metaDone = true
  for i = 1, #born, 2 do
    r = try('XADD', KEYS[2], e .. '-' .. format('%.0f', seq + appended + 1), 'd', born[i], 'b',
      born[i + 1])
    if type(r) == 'table' then
      return r
    end
    appended = appended + 1
  end
end
local failure = commit()
if not failure then
  return replies
end

local function restore(key, flat, was)
  for i = 1, #flat, 2 do
    local value = was[(i + 1) / 2]
    if value then
      try('HSET', key, flat[i], value)
    else
      try('HDEL', key, flat[i])
    end
  end
end
if appended > 0 then
  unappend(KEYS[2], e, seq, appended)
end
if metaDone then
  restore(KEYS[1], meta, metaWas)
end
for i = slicesDone, 1, -1 do
  if slices[i].flat then
    restore(slices[i].key, slices[i].flat, slices[i].was)
  end
end
for i = hashesDone, 1, -1 do
  if order[i].flat then
    restore(order[i].key, order[i].flat, order[i].was)
  end
end
abort(failure)
