#!lua flags=allow-oom
-- The exchange between a lessee (one incarnation of a sidecar) and one bucket: what it used of its
-- leases is settled and bears deltas, what it does not need is given back, what it asks for is
-- granted as far as there is room, and all of it is prolonged.
--
-- KEYS  1 meta · 2 outbox · 3 ids of the lessee's latest calls · 4 the bucket's accounts with leases,
--       by when the first thing of them is due · then, each once: account headers, indexes of
--       deeper subjects and the hashes of these
-- ARGV  1 fence text
--       2 MessagePack: sequence and time (µs) seen, epoch as text, ttl ms, outbox entries allowed,
--         lessee (8 bytes), number of accounts, id of the call (16 bytes), its time ms
--       then per account
--         · MessagePack: global version, account version, number of hashes, of portions, of deltas,
--           ordinal, whether all is settled with this call and nothing spent meanwhile (1), key of
--           the account header, and where deeper hashes are read: key of the index, keys of
--           the hashes; per hash: number of names, names of fields, of the header those of its
--           leases too; per portion: hash, place of its field's name in this run, that of its
--           lease's (0: it is only counted), start and end of its period, units to settle, units
--           that are wanted in all (-1: as it is), whether it is of a rate, number of limits, per limit: kind
--           (1 quota, 2 rate, 4 sliding, 6 grant), a, b (amount; interval and tolerance; amount and length;
--           amount and place of the field of what is owed), of a grant then for each other one that its item
--           is burnt from 9, place of its field, start of its instance and 9, amount, 0; the amounts of the
--           deltas
--         · one body per delta
-- Reply {0, now, first, answer...}: the first sequence of its deltas (0: none); an answer per
--       account: MessagePack of code (0, 7 stale), flags (1 something is due, 2 recalled, 4 the outbox is crowded, 8 the epoch is young), when the lease
--       expires (0: there is none), per portion: left, settled and held as limits see them (of a
--       rate: left, arrival time ms, 0; of a grant: left, and what its item's credit lacks of all amounts,
--       with what is held apart); where it is stale: global version, account version
--       (-1: none), configuration (empty: as known)
--       {1, now, first, answer...} this call was made before: what it settles is settled already;
--       first is 0 where that was in an epoch that is over
--       {2, f, seq} · {4} · {5} · {8, account...} not seeded, nothing was done · {10, account, portion}
--
-- Invariants: settled + held never rise above a hard limit that was not lowered beneath them; the
--   `left` of all leases and what reservations hold is what the cells hold; every settled unit has
--   its delta; what a call settles is settled once, and an older call than the latest (by ordinal)
--   changes nothing else. A lessee in doubt only settles until it says that this is all. Where the
--   configuration is another the lease ends: the lessee may still spend while this call is on its
--   way, and keeps as much as that can be. Complexity: O(portions + deltas); two calls per hash, one
--   per delta.
-- include: base, whole, lessee
-- As in `decide`, the allocator is spared.
local A = {decode(ARGV[2])}
local seen, reached, e, ttl, outMax, lessee, accounts, id, minted = unpack(A, 1, 9)
local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'gv', 'ack', 'nb', 'hv')
if M[1] ~= ARGV[1] or (M[2] or 0) + 0 < seen or (M[3] or 0) + 0 < reached then
  return {2, M[1], M[2]}
end
local seq, gv = (M[2] or 0) + 0, (M[4] or -1) + 0
local now = max(clock(), (M[3] or 0) + 0)
local ms = floor(now / 1000)

-- The calls made lately: the latest time of those forgotten, when all of it expires, ids.
local WINDOW, SKEW, CALLS = 600000, 60000, 32
if ms - minted > WINDOW or minted < (M[7] or 0) + 0 then
  return {4}
end
if minted - ms > SKEW then
  return {5}
end
local memory = call('GET', KEYS[3])
local place = memory and string.find(memory, id, 17, true)
local again = place and true or false
if memory and not again and minted <= struct.unpack('>d', memory) then
  return {4}
end

-- Where it was made in an epoch that is over its sequence says nothing in this one: that is seen
-- where it is beyond, and beside what this epoch has it does no harm.
local first = again and struct.unpack('>d', memory, place + 16) or 0
if first > seq then
  first = 0
end

local mark = '^' .. lessee
local crowded = seq - ((M[5] or 0) + 0) > outMax * 0.75
local young = M[6] and now < M[6] + 1000000
local replies, missing =
  {again and 1 or 0, int(ms), int(first)}, nil
-- What will be written: {write = command, old = values of its fields before, or undo = command}.
local steps, n, fresh = {nil, nil, nil, nil}, 0, false
local born, births = {nil, nil}, 0

-- Where a period that starts then stands in a cell: 2 where it runs, 6 where it is the one before, nil
-- where it is not held any more. A place is made for it only within the time in which a seed would
-- hold it, so what is held is always the whole of its period.
local function slotOf(cell, start, ending, field)
  local first, before = cell[1], cell[5]
  if first == start then
    return 2
  end
  if before == start and first > start then
    return 6
  end
  if ms >= ending + DAY
    and not (string.find(field, '|%d+s@?$') and ms < 2 * ending - start + DAY) then
    return nil
  end
  if first < start then
    cell[1], cell[2], cell[3], cell[4], cell[5], cell[6], cell[7], cell[8] =
      start, 0, 0, 0, first, cell[2], cell[3], nil
    return 2
  end
  if before < start then
    cell[5], cell[6], cell[7] = start, 0, 0
    return 6
  end
end

-- The counter whose field has this place, read once: as C below has it.
local function cellAt(C, raw, pos)
  local cell = C[pos]
  if not cell then
    local text = raw[pos]
    if text then
      local from, s, h, off, before, bs, bh, reset = decode(text)
      cell = {from, s, h, off, before, bs, bh, reset, text, false}
    else
      cell = {0, 0, 0, 0, 0, 0, 0, nil, false, false}
    end
    C[pos] = cell
  end
  return cell
end

local arg = 3
for a = 1, accounts do
  local P = {decode(ARGV[arg])}
  local hashes, portions, deltas = P[3], P[4], P[5]
  local ordinal, at = P[6], hashes > 1 and 9 + hashes or 9
  local headerKey = KEYS[P[8]]
  local H = call('HMGET', headerKey, 'e', 'v', '^', '^r', mark, unpack(P, at + 1, at + P[at]))
  if H[1] ~= e then
    missing = missing or {8}
    missing[#missing + 1] = a
  elseif not missing then
    -- By place in P: the texts found, then the cells, rates and leases looked at. A cell has at 9 the
    -- text it was read from, at 10 its hash where it changes; a rate its arrival time at 1, the rest
    -- likewise; a lease is left, start, end, text, whether it changes.
    local raw, rows, C = {}, {nil, nil, nil}, {nil, nil, nil, nil}
    local order, hashOf, changes = {nil, nil}, {nil, nil}, 0
    local leases, listed, named = {nil, nil}, {nil, nil}, 0
    for f = 1, P[at] do
      raw[at + f] = H[f + 5]
    end
    rows[1] = {
      e = e, second = false, index = false, expiry = 0, write = false, old = false, key = headerKey,
    }
    at = at + 1 + P[at]
    for k = 2, hashes do
      local key, size = KEYS[P[8 + k]], P[at]
      local found = call('HMGET', key, 'e', 'x', unpack(P, at + 1, at + size))
      rows[k] = {
        e = found[1], second = found[2], index = P[9], expiry = 0, write = false, old = false,
        key = key,
      }
      if found[1] == e then
        for f = 1, size do
          raw[at + f] = found[f + 2]
        end
      end
      at = at + 1 + size
    end
    local version = H[2] and H[2] + 0
    local stale = gv ~= P[1] or (version and version ~= P[2]) or false
    local live, doubt, due, expires, state, count, latest = 0, 0, nil, 0, nil, 0, 0
    if H[3] then
      live, doubt, due = decode(H[3])
    end
    if H[5] then
      expires, state, count, latest = decode(H[5])
    end
    local applies = not again
    if state then
      applies = ordinal > latest and (state == 0 or P[7] == 1)
    end
    local recalled = H[4] and ms < H[4] + 0
    local lessees = 2 * (state == 0 and live or live + 1)
    local T = {
      stale and 7 or 0,
      (due and due <= ms and 1 or 0) + (recalled and 2 or 0) + (crowded and 4 or 0)
        + (young and 8 or 0),
      state == 0 and expires or 0, nil, nil, nil, nil, nil, nil, nil, nil, nil,
    }

    local b, t = at - 1, 3
    for p = 1, portions do
      local k, pos, place, start, ending, settled, wanted, rated, limits = unpack(P, b + 1, b + 9)
      local cell, slot, arrival = C[pos], nil, nil
      if rated == 0 then
        cell = cellAt(C, raw, pos)
      else
        if not cell then
          local text = raw[pos]
          -- Rebuilt: a rate starts without burst at the instant the epoch was opened.
          cell = {
            text and text + 0 or M[6] and M[6] + P[b + 12] or now, nil, nil, nil, nil, nil, nil, nil,
            text or false, false,
          }
          C[pos] = cell
        end
        arrival = cell[1]
      end

      local lease, left, before = nil, 0, 0
      if place > 0 then
        lease = leases[place]
        if not lease then
          local text = raw[place]
          if text then
            local units, from, till = decode(text)
            lease = {units, from, till, text, false}
          else
            lease = {0, start, ending, false, false}
          end
          named = named + 1
          leases[place], listed[named] = lease, place
        end
        if lease[2] ~= start then
          -- Of another period. What is left of an older one is free: that one is over.
          if lease[2] > start or not applies then
            lease = nil
          else
            local old = cell[1] == lease[2] and 2 or cell[5] == lease[2] and 6
            if old and cell[9] and lease[1] > 0 then
              cell[old + 1] = cell[old + 1] - lease[1]
              cell[10] = cell[10] or k
            end
            lease[1], lease[2], lease[3], lease[5] = 0, start, ending, true
          end
        end
        if lease then
          left, before = lease[1], lease[1]
        end
      end

      if rated == 0 then
        slot = slotOf(cell, start, ending, P[pos])
      end
      local spent, freed, granted = 0, 0, 0
      if not again then
        spent = settled < left and max(settled, 0) or left
        left = left - spent
      end
      if applies and lease then
        local keeps = wanted < left and wanted >= 0 and wanted or left
        if stale then
          local most = ceiling(left)
          keeps = P[7] == 1 and 0 or wanted >= 0 and ceiling(wanted) < most and ceiling(wanted) or most
        end
        freed, left = left - keeps, keeps
      end
      if slot and (spent > 0 or freed > 0 or settled ~= 0 and not again) then
        -- What is gone holds nothing.
        if cell[9] or cell[slot + 1] >= spent + freed then
          cell[slot + 1] = cell[slot + 1] - spent - freed
        end
        if not again then
          cell[slot] = cell[slot] + settled
          if cell[slot] > LARGEST or cell[slot] < -LARGEST then
            return {10, a, p}
          end
          -- Nothing can be forgiven that was not counted; what a grant has there came over into it.
          if settled < 0 and slot == 2 and cell[4] > 0 and cell[4] > cell[2]
            and (limits == 0 or P[b + 10] ~= 6) then
            cell[4] = max(0, cell[2])
          end
        end
        cell[10] = cell[10] or k
      end
      if arrival and freed > 0 then
        cell[1], cell[10] = arrival - freed * P[b + 11], cell[10] or k
      end
      if lease and applies and wanted > left and not (stale or recalled or crowded or young) then
        local room
        if arrival then
          room = now + P[b + 12] <= LARGEST
            and floor((P[b + 12] - max(0, arrival - now)) / P[b + 11])
        elseif slot == 2 and ms >= start and ms < ending then
          local free = cell[4] - cell[2] - cell[3]
          for l = b + 10, b + 7 + limits * 3, 3 do
            local kind, most = P[l], P[l + 1]
            if kind == 4 then
              local length = P[l + 2]
              -- include: reach
              most = most - still
            elseif kind == 6 then
              -- What is owed is paid first.
              local owed = cellAt(C, raw, P[l + 2])
              most = most - max(0, owed[2] - owed[4] + owed[3])
            end
            if kind ~= 9 then
              most = most + free
              room = room and room < most and room or most
            end
          end
        end
        -- Near the edge every check is one call of its own.
        if room and room >= lessees + 2 then
          granted = floor(room / lessees)
          granted = granted < wanted - left and granted or wanted - left
          left = left + granted
          if arrival then
            cell[1], cell[10] = max(cell[1], now) + granted * P[b + 11], cell[10] or k
          else
            cell[3], cell[10] = cell[3] + granted, cell[10] or k
          end
        end
      end
      if lease and left ~= before then
        lease[1], lease[5] = left, true
      end
      if k > 1 and (left ~= before or settled ~= 0 and not again) then
        local row = rows[k]
        if arrival then
          row.expiry = max(row.expiry, (floor((now + P[b + 12]) / 1000 / DAY) + 2) * DAY)
        else
          row.expiry = max(row.expiry,
            ending < NEVER - DAY and ending + DAY or ms - ms % DAY + IDLE)
          for l = b + 10, b + 7 + limits * 3, 3 do
            if P[l] == 4 then
              row.expiry = max(row.expiry, start + 2 * P[l + 2] + DAY)
            end
          end
        end
      end
      if cell[10] and cell[10] ~= true then
        changes = changes + 1
        order[changes], hashOf[changes], cell[10] = pos, k, true
      end
      T[t + 1] = left
      if arrival then
        T[t + 2], T[t + 3] = floor((max(cell[1], now) + 999) / 1000), 0
      elseif slot then
        T[t + 2], T[t + 3] = cell[slot] - (slot == 2 and cell[4] or 0), cell[slot + 1]
        if limits > 0 and P[b + 10] == 6 then
          -- As `creditOf` has it: none has less than nothing, and what is owed is paid first.
          local owed = cellAt(C, raw, P[b + 12])
          local held = T[t + 3]
          local gone = max(0, owed[2] - owed[4] + owed[3]) + math.min(T[t + 2] + held, P[b + 11])
          for l = b + 13, b + 7 + limits * 3, 6 do
            local other = cellAt(C, raw, P[l + 1])
            if other[1] == P[l + 2] then
              held = held + other[3]
              gone = gone + math.min(other[2] - other[4] + other[3], P[l + 4])
            end
          end
          T[t + 2], T[t + 3] = gone - held, held
        end
      else
        T[t + 2], T[t + 3] = 0, 0
      end
      t, b = t + 3, b + 9 + limits * 3
    end

    if applies or not again then
      for c = 1, changes do
        local pos, row = order[c], rows[hashOf[c]]
        local cell, w = C[pos], row.write
        if not w then
          w = {'HSET', row.key, nil, nil, nil, nil, nil, nil}
          row.write, row.old = w, {nil, nil, nil}
          n = n + 1
          steps[n] = row
        end
        local m = #w
        w[m + 1] = P[pos]
        w[m + 2] = not cell[4] and int(cell[1]) or cell[8] and encode(unpack(cell, 1, 8))
          or encode(cell[1], cell[2], cell[3], cell[4], cell[5], cell[6], cell[7])
        row.old[m / 2] = cell[9]
        fresh = fresh or row.expiry > 0
          and row.expiry > (row.e == e and (row.second or 0) + 0 or 0)
      end
      -- The lease fields, all in the header.
      local row, gone = rows[1], nil
      local w = row.write or {'HSET', headerKey, nil, nil, nil, nil, nil, nil}
      local old, m = row.old or {nil, nil, nil}, #w
      for l = 1, named do
        local place = listed[l]
        local lease = leases[place]
        if lease[5] then
          if lease[1] > 0 then
            w[m + 1], w[m + 2] = P[place], encode(lease[1], lease[2], lease[3])
            old[m / 2] = lease[4]
            m, count = m + 2, lease[4] and count or count + 1
          elseif lease[4] then
            gone = gone or {'HSET', headerKey}
            gone[#gone + 1], gone[#gone + 2] = P[place], lease[4]
            count = count - 1
          end
        end
      end
      local becomes, was = nil, due
      if count > 0 then
        becomes = state
        if applies then
          becomes, expires = stale and 1 or 0, stale and ms or ms + ttl
        end
        w[m + 1], w[m + 2] = mark, encode(expires, becomes, count, max(latest, ordinal))
        old[m / 2] = H[5]
        m = m + 2
        local ends = expires + GRACE + becomes * LATE
        due = due and due < ends and due or ends
      elseif state then
        gone = gone or {'HSET', headerKey}
        gone[#gone + 1], gone[#gone + 2] = mark, H[5]
      end
      T[3] = becomes == 0 and expires or 0
      if becomes ~= state then
        live = live + (becomes == 0 and 1 or 0) - (state == 0 and 1 or 0)
        doubt = doubt + (becomes == 1 and 1 or 0) - (state == 1 and 1 or 0)
      end
      if live + doubt == 0 then
        due = nil
        if H[3] then
          gone[#gone + 1], gone[#gone + 2] = '^', H[3]
          if H[4] then
            gone[#gone + 1], gone[#gone + 2] = '^r', H[4]
          end
        end
      elseif becomes ~= state or due ~= was then
        w[m + 1], w[m + 2] = '^', encode(live, doubt, due)
        old[m / 2] = H[3]
        m = m + 2
      end
      if m > 2 and not row.write then
        row.write, row.old = w, old
        n = n + 1
        steps[n] = row
      end
      if gone then
        local drop = {'HDEL', headerKey}
        for f = 3, #gone, 2 do
          drop[#drop + 1] = gone[f]
        end
        n = n + 1
        steps[n] = {write = drop, undo = gone}
      end
      if due ~= was then
        local account = string.match(headerKey, ':a:(.*)$')
        local score = was or call('ZSCORE', KEYS[4], account)
        n = n + 1
        steps[n] = {
          write = due and {'ZADD', KEYS[4], int(due), account} or {'ZREM', KEYS[4], account},
          undo = score and {'ZADD', KEYS[4], score, account} or {'ZREM', KEYS[4], account},
        }
      end
      for d = 1, again and 0 or deltas do
        local amount = P[b + d]
        born[births * 2 + 1] = id .. encode(amount < 0 and 4 or 1, births, ms, amount, amount, 0)
        born[births * 2 + 2] = ARGV[arg + d]
        births = births + 1
      end
    end
    if stale then
      replies[a + 3] = encode(unpack(T, 1, t))
        .. encode(gv, version or -1, version ~= P[2] and call('HGET', headerKey, 'cfg') or '')
    else
      replies[a + 3] = encode(unpack(T, 1, t))
    end
  end
  arg = arg + 1 + deltas
end
if missing then
  return missing
end
if again and n == 0 then
  return replies
end

-- Commit, as in `decide`: what is usual keeps no journal.
if not again then
  replies[3] = births > 0 and int(seq + 1) or '0'
  local forgotten, calls = 0, ''
  if memory then
    forgotten, calls = struct.unpack('>d', memory), sub(memory, 17)
  end
  if #calls >= CALLS * 24 then
    forgotten = max(forgotten, struct.unpack('>I6', calls))
    calls = sub(calls, 25)
  end
  local till = ms + WINDOW + 2 * SKEW
  n = n + 1
  steps[n] = {
    write = {
      'SET', KEYS[3],
      struct.pack('>dd', forgotten, till) .. calls .. id .. struct.pack('>d', replies[3] + 0),
      'PXAT', int(till),
    },
    undo = memory and {'SET', KEYS[3], memory, 'PXAT', int(struct.unpack('>d', memory, 9))}
      or {'UNLINK', KEYS[3]},
  }
end
n = n + 1
steps[n] = {
  write = {'HSET', KEYS[1], 'seq', int(seq + births), 't', int(now)}, old = {M[2], M[3]},
}
local giveUp = error
if fresh then
  -- include: journal, hashes, fresh
end
local done, failure, appended = 0, nil, 0
for i = 1, n do
  local r = try(unpack(steps[i].write))
  if type(r) == 'table' and r.err then
    failure = r
    break
  end
  done = i
end
while not failure and appended < births do
  local r = try('XADD', KEYS[2], e .. '-' .. format('%d', seq + appended + 1), 'd',
    born[appended * 2 + 1], 'b', born[appended * 2 + 2])
  failure = type(r) == 'table' and r
  appended = appended + (failure and 0 or 1)
end
if not failure then
  return replies
end
-- include: append
if appended > 0 then
  unappend(KEYS[2], e, seq, appended)
end
for i = done, 1, -1 do
  local step = steps[i]
  local w = step.write
  if step.undo then
    try(unpack(step.undo))
  else
    for f = 3, #w, 2 do
      local was = step.old[(f - 1) / 2]
      try(unpack(was and {'HSET', w[2], w[f], was} or {'HDEL', w[2], w[f]}))
    end
  end
end
giveUp(failure)
