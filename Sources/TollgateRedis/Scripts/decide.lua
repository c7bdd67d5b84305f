#!lua
-- Decides operations of one bucket, one after another, and in the same step remembers them, counts
-- them and bears their deltas. Each is judged by itself, on what those before it leave behind;
-- what is written is written at the end for all of them, or not at all.
-- The same text under the flag no-writes is the script `check`.
--
-- KEYS  1 meta · 2 outbox · then, each once: operation slices, account headers, indexes of deeper
--       subjects and the hashes of these (only where a plan reads any)
-- ARGV  1 fence text
--       2 MessagePack: sequence and time (µs) seen, epoch as text and as number, dedupe window ms,
--         outbox entries allowed, number of operations, number of slices, bytes of records allowed
--         for money and for volume; per slice: key, class letter, field, number
--       then per operation
--         · id (16 bytes), fingerprint (4 x 4 bytes), MessagePack: mode (0 consume, 1 check,
--           2 post, 3 consume, and a denial that rests on leases is not recorded), global version, account version, time of the id ms, not after ms (0: none),
--           its slice, the slice in the other class, number of bodies, key of the account header,
--           and where deeper hashes are read: key of the index, keys of the hashes
--         · the plan (layout in DecidePlan.swift) · one delta body per metered item
-- Reply {2, f, seq}: nothing was looked at; or an array with one answer per operation:
--       a record (bulk string, layout in DecideReply.swift): decided; or an array
--       {1, record} {3, word} {4} {5} {6, now} {7, gv, v, cfg} {8} {9, now} {10, item} {15}
--
-- Invariants: a hard limit is never exceeded by `consume`; a denial moves no counter and no
--   arrival time; every metered item of an allowed operation bears exactly one delta; meta.seq is
--   the last sequence in the outbox; of an id at most one record exists.
-- Complexity: O(cells + limits + items); one call per hash or slice read or written and per delta.
-- include: base, whole
--
-- This runs for every operation there is, so it spares Lua's allocator, which costs more than Redis's
-- own work here: no function is made per call that is not called, tables are made at their final
-- size (`{nil, nil}` has room for two), text becomes a number by `+ 0` (`tonumber` converts twice),
-- and what only a failure needs is worked out after it.
local CHECK, POST = 1, 2

local A = {decode(ARGV[2])}
local seen, reached, e, epoch, window, outMax, count, sliceCount = unpack(A, 1, 8)

-- Slices of operation records. `found`: what is held under the ids of this call, in their order;
-- `write`: the command that stores records, if any.
local slices, sliceFields = {nil, nil}, {nil, nil}
for s = 1, sliceCount do
  local at = 7 + s * 4
  slices[s] = {
    key = KEYS[A[at]], money = A[at + 1] == 'm', field = A[at + 2], number = A[at + 3],
    asked = false, found = false, write = false, grown = 0,
  }
  sliceFields[s] = A[at + 2]
end

local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'gv', 'ack', 'nb', 'om', 'ov', 'hm', 'hv',
  unpack(sliceFields, 1, sliceCount))
if M[1] ~= ARGV[1] or (M[2] or 0) + 0 < seen or (M[3] or 0) + 0 < reached then
  return {2, M[1], M[2]}
end
local seq, gv, acked = (M[2] or 0) + 0, (M[4] or -1) + 0, (M[5] or 0) + 0
local moneyBytes, volumeBytes = (M[7] or 0) + 0, (M[8] or 0) + 0
local now = max(clock(), (M[3] or 0) + 0)
local ms = floor(now / 1000)

-- The operations: where each begins in ARGV, then its numbers.
local operations, ids, at = {nil, nil, nil, nil}, {nil, nil, nil, nil}, 3
for i = 1, count do
  local text = ARGV[at]
  local op = {cmsgpack.unpack_limit(text, 100, 32)}
  op[1], operations[i], ids[i] = at, op, sub(text, 1, 16)
  at = at + 2 + op[9]
  if op[2] == 3 then
    op[2], op.quiet = 0, true
  end
  if op[2] ~= CHECK then
    slices[op[7]].asked = true
  end
end

-- One read per slice. A record may lie in the other class: another body under the id, or a catalog
-- that changed the feature's importance; meta knows the bytes of every slice that holds any.
for s = 1, sliceCount do
  local slice = slices[s]
  if slice.asked or M[10 + s] then
    slice.found = call('HMGET', slice.key, unpack(ids, 1, count))
  end
end

-- What is shared by the operations of this call, and what they will leave behind:
--   plans    decoded, by their text
--   rows     hashes by key number. By field the text as found (false: absent; all of it where the
--            epoch is older), and once it was looked at a cell or a rate:
--              cell  start, settled, held, forgiven; of the period before start, settled, held;
--                    when it was last reset (nil: never), the text it was read from, whether it is
--                    in `write`
--              rate  arrival time, the text it was read from, whether it is in `write`
--            `write`: HSET with the fields that change, their values still to come
--   written  slice that an id was recorded in by this call
--   born     data, body, data, body ... of the deltas; `last`: the sequence of the last
local plans, rows, written = {}, {nil, nil, nil, nil, nil, nil, nil, nil}, {}
local born, births, last, changed = {nil, nil}, 0, seq, false
local replies = {nil, nil, nil, nil}

for i = 1, count do
  local op, id, reply = operations[i], ids[i], nil
  -- Not a loop: `break` leaves with the reply.
  repeat
    local mode, print = op[2], sub(ARGV[op[1]], 17, 32)
    local home, record = slices[op[7]], false
    local money = home.money
    if mode ~= CHECK then
      if ms - op[5] > window or op[5] < (M[money and 9 or 10] or 0) + 0 then
        reply = {4}
        break
      end
      if op[5] - ms > 60000 then
        reply = {5}
        break
      end
      local other, again = slices[op[8]], written[id]
      if again then
        home = again
        for w = 3, #again.write, 2 do
          record = again.write[w] == id and again.write[w + 1] or record
        end
      elseif home.found[i] then
        record = home.found[i]
      elseif other.found and other.found[i] then
        home, record = other, other.found[i]
      end
      if record then
        if sub(record, 1, 16) ~= print then
          local word = 0
          while sub(record, word * 4 + 1, word * 4 + 4) == sub(print, word * 4 + 1, word * 4 + 4) do
            word = word + 1
          end
          reply = {3, word}
          break
        end
        -- Units let through elsewhere count although this id was denied here; not where it was
        -- counted already, and not after its caller annulled it (28).
        local reason = mode == POST and decode(sub(record, 17)) or 0
        if reason < 16 or reason == 28 then
          reply = {1, record}
          break
        end
      end
    end
    if op[6] > 0 and ms > op[6] then
      reply = {6, int(ms)}
      break
    end

    local P = plans[ARGV[op[1] + 1]]
    if not P then
      P = {decode(ARGV[op[1] + 1])}
      if i < count then
        plans[ARGV[op[1] + 1]] = P
      end
    end
    local hashes, cells, limits, items = P[1], P[2], P[3], P[4]
    local R, at = {nil, nil}, 5
    for k = 1, hashes do
      local number, n = op[k == 1 and 10 or 10 + k], P[at]
      local row = rows[number]
      if not row then
        local found = call('HMGET', KEYS[number], 'e', k == 1 and 'v' or 'x',
          unpack(P, at + 1, at + n))
        local current = found[1] == e
        row = {
          e = found[1], second = found[2], index = k > 1 and op[11], expiry = 0, write = false,
          plan = P,
        }
        for f = 1, n do
          row[P[at + f]] = current and found[f + 2]
        end
        rows[number] = row
      elseif row.plan ~= P then
        local missing = {}
        for f = at + 1, at + n do
          if row[P[f]] == nil then
            missing[#missing + 1] = P[f]
          end
        end
        local found = row.e == e and missing[1] and call('HMGET', KEYS[number], unpack(missing))
        for f = 1, #missing do
          row[missing[f]] = found and found[f]
        end
      end
      R[k] = row
      at = at + 1 + n
    end

    -- Configuration, then the account's epoch, then the periods.
    local header = R[1]
    local version = header.second and header.second + 0
    if gv ~= op[3] or (version and version ~= op[4]) then
      local cfg = version ~= op[4] and call('HGET', KEYS[op[10]], 'cfg')
      reply = {7, M[4] or '0', header.second, cfg}
      break
    end
    -- Of an account that was only looked at nothing is counted: good enough to look again.
    if header.e ~= e and (mode ~= CHECK or header.e ~= e .. '?') then
      reply = {8}
      break
    end
    local cellsAt = at
    local limitsAt = cellsAt + cells * 5
    local itemsAt = limitsAt + limits * 9
    -- In a new epoch's first second sidecars say what they let through from leases of the old one.
    if P[itemsAt + items * 3 + 1] and M[6] and mode == 0 and now < M[6] + 1000000 then
      reply = {15}
      break
    end
    local C, late = {nil, nil, nil, nil}, false
    for c = 1, cells do
      local b = cellsAt + (c - 1) * 5
      local row, field, start = R[P[b]], P[P[b + 1]], P[b + 2]
      if ms < start or ms >= P[b + 3] then
        late = true
        break
      end
      local cell = row[field]
      if not cell then
        cell = {start, 0, 0, 0, 0, 0, 0, nil, false, false}
        row[field] = cell
      elseif type(cell) == 'string' then
        local from, settled, held, off, before, bs, bh, reset = decode(cell)
        cell = {from, settled, held, off, before, bs, bh, reset, cell, false}
        row[field] = cell
      end
      if cell[1] < start then
        -- Brought to the period that holds now; stored only where something is added to it.
        cell[1], cell[2], cell[3], cell[4], cell[5], cell[6], cell[7], cell[8] =
          start, 0, 0, 0, cell[1], cell[2], cell[3], nil
      end
      C[c] = cell
    end
    if late then
      reply = {9, int(ms)}
      break
    end

    -- What each limit says. T: rates; `reach`: what sliding ones still see of the period before.
    local T, unknown, reach = {nil, nil, nil, nil}, false, nil
    local hardReason, hardLeft, hardLimit, hardRetry
    local softReason, softLeft, softLimit
    for l = 1, limits do
      local b = limitsAt + (l - 1) * 9
      local kind = P[b]
      local reason, left, retry = nil, 0, -1
      if kind == 1 then
        local cell, amount = C[P[b + 4]], P[itemsAt + (P[b + 1] - 1) * 3]
        local room = P[b + 5] - (cell[2] - cell[4] + cell[3])
        if room < amount then
          reason, left = 22, max(0, room)
          -- No time helps where one request asks for more than a whole period has.
          local ends = P[cellsAt + (P[b + 4] - 1) * 5 + 3]
          if ends < NEVER and amount <= P[b + 5] then
            retry = ends - ms
          end
        end
      elseif kind == 2 then
        local row, field = R[P[b + 4]], P[P[b + 5]]
        local rate = row[field]
        if not rate then
          -- Rebuilt: a rate starts without burst at the instant the epoch was opened.
          rate = {M[6] and max(M[6] + P[b + 7], now) or now, false, false}
          row[field] = rate
        elseif type(rate) == 'string' then
          rate = {max(rate + 0, now), rate, false}
          row[field] = rate
        end
        T[l] = rate
        local tat = rate[1]
        local wait = tat + P[b + 6] - now - P[b + 7]
        if wait > 0 then
          reason, left = 23, max(0, floor((P[b + 7] - (tat - now)) / P[b + 8]))
          retry = floor((wait + 999) / 1000)
        end
      elseif kind == 0 then
        reason = P[b + 4]
        unknown = unknown or reason == 18
      elseif kind == 4 then
        local at, cell, length = cellsAt + (P[b + 4] - 1) * 5, C[P[b + 4]], P[b + 6]
        local amount, start, row = P[itemsAt + (P[b + 1] - 1) * 3], P[at + 2], R[P[at]]
        -- What is counted now is looked at while the next period runs.
        row.expiry = P[at] > 1 and max(row.expiry, start + 2 * length + DAY) or row.expiry
        -- include: reach, sliding
      end
      if reason then
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
    local mask, deltas = 0, 0
    if mode == POST then
      -- A feature that the catalog does not know has no counter to be posted to.
      reason = unknown and 18 or 4
    elseif hardReason then
      reason, binding, retry = hardReason, hardLimit, hardRetry
    elseif softReason then
      reason, binding = softReason, softLimit
    end
    if reason < 16 then
      for item = 1, items do
        if P[itemsAt + item * 3 - 2] == 1 then
          mask, deltas = mask + 2 ^ (item - 1), deltas + 1
        end
      end
      if mode == 0 and deltas > 0 and last + deltas - acked > outMax then
        reason, binding, retry, mask, deltas = 24, nil, -1, 0, 0
      end
    end
    -- Money is denied at the ceiling; volume shortens its window (sweep), and is denied only where
    -- that does not keep up.
    local full = mode == 0
      and (money and moneyBytes >= A[9] or not money and volumeBytes >= A[10] * 1.25)
    if full then
      reason, binding, retry, mask, deltas = 25, nil, -1, 0, 0
    end

    -- Count, in memory: everything may still be refused, so first look, then add. A rate that would
    -- deny does not move.
    if reason < 16 and mode ~= CHECK then
      local overflow
      for l = mode == 0 and limits or 0, 1, -1 do
        local b, rate = limitsAt + (l - 1) * 9, T[l]
        if rate and rate[1] + P[b + 6] - now <= P[b + 7] and rate[1] + P[b + 6] > LARGEST then
          overflow = P[b + 1]
        end
      end
      for c = cells, 1, -1 do
        local item = P[cellsAt + c * 5 - 1]
        if C[c][2] + P[itemsAt + (item - 1) * 3] > LARGEST then
          overflow = item
        end
      end
      if overflow then
        reply = {10, overflow}
        break
      end
      for c = 1, cells do
        local b = cellsAt + (c - 1) * 5
        local k, cell, row = P[b], C[c], R[P[b]]
        cell[2] = cell[2] + P[itemsAt + (P[b + 4] - 1) * 3]
        if not cell[10] then
          cell[10] = true
          local w = row.write
          if w then
            w[#w + 1], w[#w + 2] = P[P[b + 1]], false
          else
            row.write = {'HSET', KEYS[op[k == 1 and 10 or 10 + k]], P[P[b + 1]], false, nil, nil}
          end
        end
        if k > 1 then
          row.expiry = max(row.expiry, P[b + 3] < NEVER - DAY and P[b + 3] + DAY or ms - ms % DAY + IDLE)
        end
      end
      for l = 1, mode == 0 and limits or 0 do
        local b, rate = limitsAt + (l - 1) * 9, T[l]
        if rate and rate[1] + P[b + 6] - now <= P[b + 7] then
          local k = P[b + 4]
          local row = R[k]
          rate[1] = rate[1] + P[b + 6]
          if not rate[3] then
            rate[3] = true
            local w = row.write
            if w then
              w[#w + 1], w[#w + 2] = P[P[b + 5]], false
            else
              row.write = {'HSET', KEYS[op[k == 1 and 10 or 10 + k]], P[P[b + 5]], false, nil, nil}
            end
          end
          if k > 1 then
            row.expiry = max(row.expiry, (floor((now + P[b + 7]) / 1000 / DAY) + 2) * DAY)
          end
        end
      end
    end

    -- The record: the answer, and what a replay gives again.
    local states, rests = nil, op.quiet and reason == 23
    for item = 1, items do
      local least, limit, settled, held, reset
      for l = 1, limits do
        local b = limitsAt + (l - 1) * 9
        if P[b + 1] == item then
          local kind = P[b]
          if kind == 1 or kind == 4 then
            local cell = C[P[b + 4]]
            local used = cell[2] - cell[4]
            local left = max(0, P[b + 5] - (kind == 4 and reach[l] or 0) - (used + cell[3]))
            left = left < LARGEST and left or LARGEST
            if not least or left < least then
              least, limit, settled, held = left, P[b + 3], used, cell[3]
              reset = P[cellsAt + (P[b + 4] - 1) * 5 + 3]
              reset = reset < NEVER and reset or -1
            end
          elseif kind == 2 then
            local tat = T[l][1]
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
        local billing = P[itemsAt + item * 3 - 1]
        if billing > 0 then
          local cell = C[billing]
          settled, held = cell[2] - cell[4], cell[3]
        end
      end
      rests = rests or op.quiet and reason == 22 and held > 0
      local state = encode(limit, least, settled, held, reset)
      states = states and states .. state or state
    end
    local first = deltas > 0 and mode ~= CHECK and last + 1 or 0
    local top = encode(reason, ms, gv, op[4], epoch, first, mode == CHECK and 0 or mask, 0,
      binding and P[binding + 1] or 0, binding and P[binding + 3] or '', retry, items)
    -- A refusal that is not about what was asked passes by itself: the same id may come again.
    -- So may one whose denial rests on what leases hold, as far as its answer shows that something is
    -- held: they are asked to give it back first.
    if mode == CHECK or reason == 17 or reason == 24 or full or rests or (mode == POST and unknown) then
      reply = print .. top .. states
      break
    end
    reply = print .. top .. states .. (reason < 16 and P[itemsAt + items * 3] or '')

    local w = home.write
    if not w then
      home.write = {'HSET', home.key, id, reply}
    elseif written[id] then
      for at = 3, #w, 2 do
        w[at + 1] = w[at] == id and reply or w[at + 1]
      end
    else
      w[#w + 1], w[#w + 2] = id, reply
    end
    if i < count then
      written[id] = home
    end
    changed = true
    local grown = #reply - (record and #record or -80)
    home.grown = home.grown + grown
    if home.money then
      moneyBytes = moneyBytes + grown
    else
      volumeBytes = volumeBytes + grown
    end
    local body = op[1] + 2
    for item = 1, deltas > 0 and items or 0 do
      local amount = P[itemsAt + item * 3 - 3]
      if P[itemsAt + item * 3 - 2] == 1 then
        born[births + 1] = id .. encode(1, item - 1, ms, amount, amount, 0)
        born[births + 2] = ARGV[body]
        births, last, body = births + 2, last + 1, body + 1
      end
    end
  until true
  replies[i] = reply
end
if not changed then
  return replies
end
-- Commit. The commands as they will be sent, in `steps`; all text of numbers is made before the
-- first write, because `int` may refuse.
local steps, n, fresh = {nil, nil, nil, nil}, 0, false
for k = 3 + sliceCount, #KEYS do
  local row = rows[k]
  local w = row and row.write
  if w then
    for at = 3, #w, 2 do
      local value = row[w[at]]
      if value[4] then
        w[at + 1] = value[8] and encode(unpack(value, 1, 8))
          or encode(value[1], value[2], value[3], value[4], value[5], value[6], value[7])
      else
        w[at + 1] = int(value[1])
      end
    end
    n = n + 1
    steps[n] = row
    fresh = fresh or row.expiry > 0
      and row.expiry > (row.e == e and (row.second or 0) + 0 or 0)
  end
end
local meta = {'HSET', KEYS[1], 'seq', int(last), 't', int(now), nil, nil, nil, nil}
for s = 1, sliceCount do
  local slice = slices[s]
  if slice.write then
    local had, m = M[10 + s], #meta
    meta[m + 1], meta[m + 2] = slice.field, int((had or 0) + slice.grown)
    meta[m + 3] = slice.money and 'om' or 'ov'
    meta[m + 4] = int(slice.money and moneyBytes or volumeBytes)
    n = n + 1
    steps[n] = slice
    if not had then
      n = n + 1
      steps[n] = {write = {'PEXPIREAT', slice.key, int((slice.number + 1) * 120000 + 90000000)}}
    end
  end
end

-- Deeper subjects that are new, of an older epoch, or that live longer now: rare, with a journal,
-- before everything else. They are written whole and are no step any more.
local giveUp = error
if fresh then
  -- include: journal, hashes, fresh
end

-- The usual writes keep no journal: a failure takes them back from the values read.
local done, failure = 0, nil
for i = 1, n do
  local r = try(unpack(steps[i].write))
  if type(r) == 'table' then
    failure = r
    break
  end
  done = i
end
local metaDone, appended = false, 0
if not failure then
  local r = try(unpack(meta))
  failure = type(r) == 'table' and r
  metaDone = not failure
end
while not failure and appended < births / 2 do
  local r = try('XADD', KEYS[2], e .. '-' .. format('%d', seq + appended + 1), 'd',
    born[appended * 2 + 1], 'b', born[appended * 2 + 2])
  failure = type(r) == 'table' and r
  appended = appended + (failure and 0 or 1)
end
if not failure then
  return replies
end

-- include: append
local function restore(w, old)
  for at = 3, #w, 2 do
    local was = old(w[at])
    try(unpack(was and {'HSET', w[2], w[at], was} or {'HDEL', w[2], w[at]}))
  end
end
if appended > 0 then
  unappend(KEYS[2], e, seq, appended)
end
if metaDone then
  local was = {seq = M[2], t = M[3], om = M[7], ov = M[8]}
  for s = 1, sliceCount do
    was[sliceFields[s]] = M[10 + s]
  end
  restore(meta, function(field)
    return was[field]
  end)
end
for i = done, 1, -1 do
  local step = steps[i]
  if step.field then
    restore(step.write, function(id)
      for at = 1, count do
        if ids[at] == id then
          return step.found[at]
        end
      end
    end)
  elseif step.plan then
    restore(step.write, function(field)
      local value = step[field]
      return value[value[4] and 9 or 2]
    end)
  end
end
giveUp(failure)
