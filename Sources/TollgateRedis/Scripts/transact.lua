#!lua
-- Decides one operation that is about more than quotas and rates: one whose units are burnt from
-- grants, charged to other features, capped in what goes beyond, or held. The same text under the
-- flag no-writes is the script `transact_check`.
--
-- KEYS  1 meta · 2 outbox · 3 operation slice · 4 the slice in the other class · 5 account header
--       6... hashes of the deeper subjects, from level 2 to the subject's own, then, where there
--       are any, their index; for a reservation last its account's holds, their ends, and the
--       bucket's accounts by their first end
-- ARGV  1 fence text · 2 seen sequence
--       3 MessagePack: epoch as text and as number, dedupe window ms, bytes of records allowed for
--         money and for volume, outbox entries allowed, mode (0 consume, 1 check, 2 post,
--         3 reserve, 4 consume, and a denial that rests on leases is not recorded), global version, account version, time of the id ms, not after ms (0: none),
--         class letter and number of the slice, items asked for, depth of the subject, ttl ms,
--         overrun, bound, live holds allowed, ms after the epoch's begin in which nothing is let in,
--         whether the ledger vouches for a post that is older than the window (1)
--       4 id (16 bytes) and fingerprint (4 x 4 bytes) · 5 the plan (layout in RichPlan.swift)
--       6 subject · 7 fields 5 to 8 of the delta bodies
-- Reply {0, record, now, hold, body...} decided, with the hold and the body of each delta; {1, record} {2, f, seq}
--       {3, word} {4} {5} {6, now} {7, gv, v, cfg} {8} {9, now} {10, item} · {17} holds of the
--       account are due: expire them first · {15} the epoch is young: sidecars are still bringing
--       the holds they made · {16} those of the account are to be brought first
--
-- Invariants: settled + held stay within every hard limit; a denial moves no counter, no arrival
--   time and makes no hold; all of it is written, or nothing; what is burnt, charged and held is
--   written down with the operation, so it can be given back as it was. Per rate and month the sum
--   charged is that of the units, rounded down.
-- Complexity: O(cells + limits + draws + pricings).
-- include: base, journal, append, hashes, fence
local CHECK, POST, RESERVE, OLD = 1, 2, 3, false
local A = {decode(ARGV[3])}
local e, epoch, window, moneyMax, volumeMax, outMax, mode = unpack(A, 1, 7)
local opTime, class, slice, asked, depth = A[10], A[12], A[13], A[14], A[15]
local quiet = mode == 4
if quiet then
  mode = 0
end
local LEVELS, INDEX = 4, 5 + depth
local HOLDS = 5 + depth + (depth > 1 and 1 or 0)
local id, print = sub(ARGV[4], 1, 16), sub(ARGV[4], 17, 32)
local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'gv', 'ack', 'nb', 'om', 'ov', 'hm', 'hv',
  class .. format('%d', slice), (class == 'm' and 'v' or 'm') .. format('%d', slice))
local stop = fenced(M[1], M[2], M[3])
if stop then
  return stop
end
local now = max(clock(), tonumber(M[3]) or 0)
local ms = floor(now / 1000)
-- include: record
if mode ~= CHECK then
  local reply = known(mode == POST, A[21] == 1)
  if reply then
    return reply
  end
end
if A[11] > 0 and ms > A[11] then
  return {6, int(ms)}
end
local header = call('HMGET', KEYS[5], 'e', 'v', 'hn', 'hr')
local version, hn = header[2] and tonumber(header[2]), header[3]
if tonumber(M[4] or '-1') ~= A[8] or (version and version ~= A[9]) then
  return {7, M[4] or '0', header[2], version ~= A[9] and call('HGET', KEYS[5], 'cfg')}
end
if header[1] ~= e and (mode ~= CHECK or header[1] ~= e .. '?') then
  return {8}
end
if (mode == 0 or mode == RESERVE) and M[6] and ms < floor(tonumber(M[6]) / 1000) + A[20] then
  return {15}
end
if A[20] > 0 and header[4] ~= e and mode ~= CHECK then
  return {16}
end
if hn and tonumber(hn) <= ms then
  return {17}
end
local P = {decode(ARGV[5])}
-- include: rows, price
do
  -- Before anything is turned to the periods that hold now.
  local at = 7
  for _ = 1, P[1] do
    at = at + 1 + P[at]
  end
  for c = 1, P[2] do
    local b = at + (c - 1) * 6
    if ms < P[b + 1] or ms >= P[b + 2] then
      return {9, int(ms)}
    end
  end
end
-- include: measure
local isHold = mode == RESERVE
local burns, cures, charges, shares, owes, overflow = {}, {}, {}, {}, {}, nil
for i = 1, items do
  amounts[i], overage[i] = P[itemsAt + (i - 1) * 8 + 1], 0
end
local isTarget = {}
for p = 1, pricings do
  isTarget[P[pricingsAt + (p - 1) * 8 + 1]] = true
end
local function cover(i)
  local b, rest = itemsAt + (i - 1) * 8, amounts[i]
  if P[b + 4] == 1 then
    local owed = owedOf(i)
    for d = P[b + 5], P[b + 5] + P[b + 6] - 1 do
      local left = leftOf(d)
      local cure = math.min(owed, left)
      if cure > 0 then
        cures[#cures + 1], owed, left = {d, cure, i}, owed - cure, left - cure
      end
      local burnt = math.min(rest, left)
      if burnt > 0 then
        burns[#burns + 1], rest = {d, burnt, i}, rest - burnt
      end
    end
  end
  if mode == POST and rest > 0 and isPrepaid(i) then
    owes[#owes + 1], rest = {P[b + 7], rest}, 0
  end
  overage[i] = rest
end
local function charge(i)
  for p = 1, pricings do
    local b = pricingsAt + (p - 1) * 8
    if P[b] == i then
      local units = P[b + 2] == 0 and amounts[i] or overage[i]
      local level, name, start = placeIn(P[b + 5])
      local price = isHold and ceilingOf(units, P[b + 3], P[b + 4])
        or chargeOf(units, slotOf(level, name, start)[2], P[b + 3], P[b + 4])
      shares[P[b + 5]] = units
      local target = P[b + 1]
      local sum = amounts[target] + price
      if price > LARGEST or sum > LARGEST then
        overflow = overflow or target
      else
        amounts[target] = sum
        charges[#charges + 1] = {P[b + 6], P[b + 7], units, price, target, p}
      end
    end
  end
end
for pass = 1, 2 do
  for i = 1, items do
    if (isTarget[i] or false) == (pass == 2) then
      cover(i)
      charge(i)
    end
  end
end

-- What each limit says. `see`: reason or nil, what it leaves, when asking again helps.
local reach, arrival = {}, {}
local function against(units, amount, c)
  local level, name, start, ends = placeIn(c)
  local room = amount - usedOf(c)
  local retry = -1
  if room < units and units <= amount and ends < NEVER then
    retry = ends - ms
  end
  return room < units, max(0, math.min(room, LARGEST)), retry
end
local function see(l)
  local b = limitsAt + (l - 1) * 9
  local kind, i = P[b], P[b + 1]
  if kind == 0 then
    return P[b + 4], 0, -1
  elseif kind == 1 then
    local over, left, retry = against(amounts[i], P[b + 5], P[b + 4])
    return over and 22, left, retry
  elseif kind == 2 then
    local level, name = P[b + 4], P[b + 5]
    if not arrival[l] then
      local raw = rows[level].raw[name]
      -- Rebuilt: a rate starts without burst at the instant the epoch was opened.
      arrival[l] = raw and max(raw + 0, now) or M[6] and max(M[6] + P[b + 7], now) or now
    end
    local tat = arrival[l]
    local wait = tat + P[b + 6] - now - P[b + 7]
    local left = max(0, floor((P[b + 7] - (tat - now)) / P[b + 8]))
    return wait > 0 and 23, left, wait > 0 and floor((wait + 999) / 1000) or -1
  elseif kind == 4 then
    local level, name, start = placeIn(P[b + 4])
    local cell, amount, length = slotOf(level, name, start), amounts[i], P[b + 6]
    local reason, left, retry = nil, 0, -1
    -- include: reach, sliding
    return reason, max(0, math.min(room, LARGEST)), retry
  elseif kind == 5 then
    local room = P[b + 5] - usedOf(P[b + 4])
    return room < amounts[i] and 29, max(0, math.min(room, LARGEST)), -1
  elseif kind == 6 then
    if P[b + 4] == 1 then
      return nil, LARGEST, -1
    end
    local retry = -1
    if overage[i] > 0 then
      local first = P[itemsAt + (i - 1) * 8 + 5]
      for d = first, first + P[itemsAt + (i - 1) * 8 + 6] - 1 do
        local at = drawsAt + (d - 1) * 9
        if P[at + 6] % 2 == 1 and P[at + 2] == 0 and P[at + 1] >= amounts[i] then
          local _, _, _, ends = placeIn(P[at])
          retry = retry < 0 and ends - ms or math.min(retry, ends - ms)
        end
      end
    end
    return overage[i] > 0 and 30, creditOf(i), retry
  elseif kind == 7 then
    if P[b + 5] < 0 then
      return nil, LARGEST, -1
    end
    local over, left, retry = against(overage[i], P[b + 5], P[b + 4])
    return over and 31, math.min(left + creditOf(i), LARGEST), retry
  end
  return nil, LARGEST, -1
end
local reason, binding, retry, unknown, least = 0, nil, -1, false, nil
local soft, softLimit, softLeast
local passes = {}
for l = 1, limits do
  local b = limitsAt + (l - 1) * 9
  local why, left, wait = see(l)
  passes[l] = not why
  unknown = unknown or why == 18
  if why and P[b + 2] == 0 then
    if reason == 0 or why < reason or (why == reason and left < least) then
      reason, binding, retry, least = why, b, wait, left
    end
  elseif why then
    local weight = P[b + 2]
    if not soft or weight < soft or (weight == soft and left < softLeast) then
      soft, softLimit, softLeast = weight, b, left
    end
  end
end
if mode == POST then
  reason, binding, retry = unknown and 18 or 4, nil, -1
elseif reason == 0 and soft then
  reason, binding = soft, softLimit
end
if isHold and reason < 16 and call('HLEN', KEYS[HOLDS]) >= A[19] then
  reason, binding, retry = 33, nil, -1
end
local mask, births = 0, 0
if reason < 16 then
  for i = 1, items do
    if P[itemsAt + (i - 1) * 8 + 2] == 1 then
      births = births + 1
      mask = mask + (isHold and 0 or 2 ^ (i - 1))
    end
  end
  -- Holds leave room for the settles of those that are open.
  local room = isHold and outMax * 0.75 or outMax
  local seq, acked = tonumber(M[2]) or 0, tonumber(M[5]) or 0
  if (mode == 0 or isHold) and births > 0 and seq + births - acked > room then
    reason, binding, retry, mask, births = 24, nil, -1, 0, 0
  end
end
local full = (mode == 0 or isHold) and isFull(moneyMax, volumeMax)
if full then
  reason, binding, retry, mask, births = 25, nil, -1, 0, 0
end
if isHold then
  births = 0
end

-- Count, in memory.
local counted = {}
local function count(c, amount)
  local level, name, start, ends = placeIn(c)
  local held = isHold and amount or 0
  counted[#counted + 1] = {c, amount}
  return add(level, name, start, ends, amount - held, held)
end
if reason < 16 and mode ~= CHECK then
  if overflow then
    return {10, overflow}
  end
  for k = 1, #burns do
    local d = P[drawsAt + (burns[k][1] - 1) * 9]
    shares[d] = (shares[d] or 0) + burns[k][2]
  end
  for k = 1, isHold and 0 or #cures do
    local d = P[drawsAt + (cures[k][1] - 1) * 9]
    shares[d] = (shares[d] or 0) + cures[k][2]
    local deficit = P[itemsAt + (cures[k][3] - 1) * 8 + 7]
    shares[deficit] = (shares[deficit] or 0) - cures[k][2]
  end
  for k = 1, #owes do
    shares[owes[k][1]] = (shares[owes[k][1]] or 0) + owes[k][2]
  end
  for c = 1, cells do
    local b = cellsAt + (c - 1) * 6
    local i, tally = P[b + 3], P[b + 4]
    local share = shares[c]
    if tally == 0 or (tally == 2 and isHold) then
      share = amounts[i]
    elseif tally == 1 then
      share = overage[i]
    elseif tally == 4 and isHold then
      share = nil
    end
    if share and not count(c, share) then
      return {10, i}
    end
  end
  for l = 1, mode == POST and 0 or limits do
    local b = limitsAt + (l - 1) * 9
    if P[b] == 2 and passes[l] then
      arrival[l] = arrival[l] + P[b + 6]
      if arrival[l] > LARGEST then
        return {10, P[b + 1]}
      end
      local gone = (floor((now + P[b + 7]) / 1000 / DAY) + 1) * DAY
      changes(P[b + 4], P[b + 5], 0, gone, int(arrival[l]))
    end
  end
end

-- The record: the answer, and what a replay gives again and a cancel takes back.
local states, rests = '', quiet and reason == 23
for i = 1, items do
  local least, limit, settled, held, reset
  for l = 1, limits do
    local b = limitsAt + (l - 1) * 9
    local kind = P[b]
    local skipped = kind == 0 or kind == 3 or (kind == 6 and P[b + 4] == 1)
      or (kind == 7 and P[b + 5] < 0)
    if P[b + 1] == i and not skipped then
      local _, left = see(l)
      if not least or left < least then
        least, limit = left, P[b + 3]
        if kind == 2 then
          settled, held, reset = 0, 0, floor((arrival[l] + 999) / 1000)
        elseif kind == 6 then
          settled, held, reset = 0, 0, NEVER
          local first = P[itemsAt + (i - 1) * 8 + 5]
          for d = first, first + P[itemsAt + (i - 1) * 8 + 6] - 1 do
            local level, name, start, ends = placeIn(P[drawsAt + (d - 1) * 9])
            local cell = slotOf(level, name, start)
            settled, held, reset = settled + cell[2], held + cell[3], math.min(reset, ends)
          end
          reset = reset < NEVER and reset or -1
        else
          local level, name, start, ends = placeIn(P[b + 4])
          local cell = slotOf(level, name, start)
          settled, held, reset = cell[2] - cell[4], cell[3], ends < NEVER and ends or -1
        end
      end
    end
  end
  if not least then
    least, limit, settled, held, reset = -1, '', 0, 0, -1
    local billing = P[itemsAt + (i - 1) * 8 + 3]
    if billing > 0 then
      local level, name, start = placeIn(billing)
      local cell = slotOf(level, name, start)
      settled, held = cell[2] - cell[4], cell[3]
    end
  end
  -- Where another limit leaves less than the credit, what is held of its grants is not shown.
  rests = rests or quiet and ((reason == 22 or reason == 30) and held > 0
    or reason == 30 and i == P[binding + 1] and limit ~= P[binding + 3])
  states = states .. encode(limit, least, settled, held, reset)
end
local first = births > 0 and mode ~= CHECK and (tonumber(M[2]) or 0) + 1 or 0
local isApplied = reason < 16 and mode ~= CHECK
local expires = isHold and isApplied and ms + A[16] or 0
local tail = {-1, expires, asked, items}
for i = 1, items do
  local units = isApplied and not isHold and amounts[i] or 0
  tail[#tail + 1], tail[#tail + 2], tail[#tail + 3] = P[itemsAt + (i - 1) * 8], units, units
end
local spent = {}
for k = 1, reason < 16 and #burns or 0 do
  spent[k] = {burns[k][3], P[drawsAt + (burns[k][1] - 1) * 9 + 7], burns[k][2]}
end
for i = 1, reason < 16 and items or 0 do
  -- Only where grants could have covered it.
  if P[itemsAt + (i - 1) * 8 + 4] == 1 and overage[i] > 0 then
    spent[#spent + 1] = {i, '', overage[i]}
  end
end
tail[#tail + 1] = #spent
for k = 1, #spent do
  tail[#tail + 1], tail[#tail + 2], tail[#tail + 3] = unpack(spent[k])
end
tail[#tail + 1] = isApplied and not isHold and #counted or 0
for k = 1, tail[#tail] do
  local b = cellsAt + (counted[k][1] - 1) * 6
  for _, value in ipairs({P[b + 3] - 1, P[b], P[b + 5], P[b + 1], P[b + 2], counted[k][2]}) do
    tail[#tail + 1] = value
  end
end
tail[#tail + 1] = isApplied and not isHold and #charges or 0
for k = 1, tail[#tail] do
  local c = charges[k]
  for _, value in ipairs({c[5] - 1, c[1], c[2], c[3], c[4]}) do
    tail[#tail + 1] = value
  end
end
local answer = print .. encode(reason, ms, A[8], A[9], epoch, first, mode == CHECK and 0 or mask, 0,
  binding and P[binding + 1] or 0, binding and P[binding + 3] or '', retry, items) .. states
  .. encode(unpack(tail))
-- A refusal that is not about what was asked passes by itself: the same id may come again. So may
-- one that rests on what leases hold (`decide` has the same).
if mode == CHECK or rests or reason == 17 or reason == 24 or reason == 33 or full
  or (mode == POST and unknown) then
  return {0, answer, int(ms)}
end

-- include: bodies
local born, told = {}, {0, answer, int(ms), ''}
for i = 1, births > 0 and items or 0 do
  local b = itemsAt + (i - 1) * 8
  if P[b + 2] == 1 then
    local counts, prices = {}, {}
    for k = 1, #counted do
      local at = cellsAt + (counted[k][1] - 1) * 6
      if P[at + 3] == i then
        counts[#counts + 1] = {P[at], P[at + 5], P[at + 1], P[at + 2], counted[k][2], P[at + 4] == 0}
      end
    end
    for k = 1, #charges do
      if charges[k][5] == i then
        prices[#prices + 1] = charges[k]
      end
    end
    local billing = cellsAt + (P[b + 3] - 1) * 6
    local body = bodyOf(ARGV[6], P[b], P[billing + 1], P[billing + 2], counts, prices, ARGV[7])
    born[#born + 1] = {i - 1, amounts[i], amounts[i], 0, body}
    told[#told + 1] = body
  end
end
if isHold and isApplied then
  -- include: hold
  local hold = {
    state = 0, created = ms, expires = expires, overrun = A[17], bound = A[18],
    subject = ARGV[6], asked = asked, epoch = epoch, settles = 0, items = {}, counts = {},
    pricings = {},
  }
  for i = 1, items do
    local b = itemsAt + (i - 1) * 8
    local billing = P[b + 3] > 0 and cellsAt + (P[b + 3] - 1) * 6
    hold.items[i] = {P[b], amounts[i], amounts[i], P[b + 2], billing and P[billing + 1] or 0,
      billing and P[billing + 2] or 0, 0}
  end
  -- Grants as they were burnt, the rest as they come: what is given back goes the other way.
  local function keep(c, amount, over)
    local b = cellsAt + (c - 1) * 6
    hold.counts[#hold.counts + 1] = {P[b + 3], P[b], P[b + 5], P[b + 1], P[b + 2], P[b + 4], amount,
      over}
  end
  for k = 1, #burns do
    keep(P[drawsAt + (burns[k][1] - 1) * 9], burns[k][2], carried[burns[k][1]])
  end
  for k = 1, #counted do
    if P[cellsAt + (counted[k][1] - 1) * 6 + 4] ~= 3 then
      keep(counted[k][1], counted[k][2], 0)
    end
  end
  for p = 1, pricings do
    local b = pricingsAt + (p - 1) * 8
    local at = cellsAt + (P[b + 5] - 1) * 6
    hold.pricings[p] = {P[b], P[b + 1], P[b + 2], P[b + 3], P[b + 4], P[at + 5], P[at + 1], P[at + 2],
      P[b + 6], P[b + 7]}
  end
  writeRows()
  told[4] = packHold(hold)
  keepHold(id, told[4], expires + GRACE, false)
  schedule(string.match(ARGV[6], '^[^/]*'), hn)
else
  writeRows()
end
remember(answer, #born)
bear(born)
return told
