#!lua flags=allow-oom
-- What becomes of a reservation: settled (in part, or for good), released, extended.
--
-- KEYS  1 meta · 2 outbox · 3 operation slice · 4 the slice in the other class · 5 account header
--       6... hashes of the deeper subjects, from level 2 to the subject's own, then, where there are
--       any, their index; the account's holds, their ends, the bucket's accounts by their first
--       end, and the ended reservations of the hour of this one's id
-- ARGV  1 fence text · 2 seen sequence
--       3 MessagePack: epoch as text and as number, dedupe window ms, kind (1 settle, 2 release,
--         3 extend), global version, account version, time of the id ms, not after ms (0: none),
--         class letter and number of the slice, depth of the subject, final (0, 1), ttl ms, number
--         of items, per item: feature, what was used
--       4 id (16 bytes) and fingerprint (4 x 4 bytes) · 5 a plan (RichPlan.swift) of the items of
--       the hold as of its creation, or nothing · 6 subject · 7 fields 5 to 8 of the delta bodies
--       8 the reservation's id
-- Reply {0, record, now, hold, body...}: done, with the hold as it is now and each delta's body;
--       {1, record} {2, f, seq} {3, word} {4} {5} {6, now} {7, gv, v, cfg} {8} {10} {17}
--       {18, created, feature...} call again with a plan · {16} holds
--       of an older epoch are to be brought first · {14, state}: not there (0), ended
--       (1 to 3), an item that it does not hold (4), more used than held where that is refused (5)
--
-- Invariants: HELD ends once; what is settled moves from held to settled in the period that admitted
--   it, grants first burnt first; what was held beyond every grant is burnt from those that have
--   something by now; what is left goes back; beyond the hold only what every hard limit leaves is
--   charged, and up to the bound of each item what is owed, the rest is absorbed; the expired are charged in full.
--   Never refused for want of room: what was used was used.
-- Complexity: O(counts of the hold + cells of the plan).
-- include: base, journal, append, hashes, fence
local SETTLE, RELEASE, EXTEND, OLD = 1, 2, 3, true
local A = {decode(ARGV[3])}
local e, epoch, window, kind = A[1], A[2], A[3], A[4]
local opTime, class, slice, depth = A[7], A[9], A[10], A[11]
local LEVELS, INDEX = 4, 5 + depth
local HOLDS = 5 + depth + (depth > 1 and 1 or 0)
local id, print, reservation = sub(ARGV[4], 1, 16), sub(ARGV[4], 17, 32), ARGV[8]
local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'gv', 'ack', 'nb', 'om', 'ov', 'hm', 'hv',
  class .. format('%d', slice), (class == 'm' and 'v' or 'm') .. format('%d', slice))
local stop = fenced(M[1], M[2], M[3])
if stop then
  return stop
end
local now = max(clock(), tonumber(M[3]) or 0)
local ms = floor(now / 1000)
-- include: record
local reply = known(false)
if reply then
  return reply
end
if A[8] > 0 and ms > A[8] then
  return {6, int(ms)}
end
local header = call('HMGET', KEYS[5], 'e', 'v', 'hn')
local hn = header[3]
if header[1] ~= e then
  return {8}
end
if hn and tonumber(hn) <= ms then
  return {17}
end
-- include: rows, price, hold
local was = call('HGET', KEYS[HOLDS], reservation)
local late = false
local bytes = was
if not bytes then
  bytes = call('HGET', KEYS[HOLDS + 3], reservation)
  local state = bytes and decode(bytes) or 0
  if kind ~= SETTLE or state ~= 3 then
    return {14, state}
  end
  late = true
end
local hold = readHold(bytes)
if hold.subject ~= ARGV[6] then
  return {14, 0}
end
if not late and hold.epoch ~= epoch then
  return {16}
end

local actual, charged, over, named, spent, counted, charges = {}, {}, {}, {}, {}, {}, {}
local names, isTarget, derived = {}, {}, {}
for i = 1, #hold.items do
  charged[i], over[i], counted[i], derived[i] = 0, 0, {}, 0
  if i <= hold.asked then
    names[hold.items[i][1]] = i
  end
end
for k = 1, A[14] do
  local i = names[A[13 + k * 2]]
  if not i then
    return {14, 4}
  end
  actual[i], named[i] = A[14 + k * 2], true
end
for p = 1, #hold.pricings do
  isTarget[hold.pricings[p][2]] = true
end

-- Every counter the hold names is read first.
local fields = {}
for level = 1, depth do
  fields[level] = {}
end
local function want(level, name)
  fields[level][#fields[level] + 1] = name
end
for i = 1, #hold.counts do
  want(hold.counts[i][2], fieldIn(hold, hold.counts[i]))
end
for p = 1, #hold.pricings do
  want(1, hold.items[hold.pricings[p][1]][1] .. '|' .. hold.pricings[p][6])
end
for level = 1, depth do
  load(level, fields[level])
end

-- The plan: what grants and limits leave beyond the hold.
local P, roomOf, burn, owe, prepaid
local function count(i, level, code, start, ends, amount, held, whole)
  counted[i][#counted[i] + 1] = {level, code, start, ends, amount, whole}
  return add(level, hold.items[i][1] .. '|' .. code, start, ends, amount, held)
end
if ARGV[5] ~= '' then
  local version = header[2] and tonumber(header[2])
  if tonumber(M[4] or '-1') ~= A[5] or (version and version ~= A[6]) then
    return {7, M[4] or '0', header[2], version ~= A[6] and call('HGET', KEYS[5], 'cfg')}
  end
  P = {decode(ARGV[5])}
  -- include: measure
  prepaid = isPrepaid
  roomOf = function(i)
    local room = LARGEST
    for l = 1, limits do
      local b = limitsAt + (l - 1) * 9
      local kind = P[b]
      if P[b + 1] == i and P[b + 2] == 0 then
        if kind == 0 then
          room = 0
        elseif kind == 1 then
          room = math.min(room, P[b + 5] - usedOf(P[b + 4]))
        elseif kind == 4 then
          local level, name, start = placeIn(P[b + 4])
          local cell, at = slotOf(level, name, start)
          local length, left = P[b + 6], P[b + 5]
          if at == 2 and ms < start + length and cell[5] == start - length then
            local before = max(0, cell[6] + cell[7])
            local weight = floor(((length - (ms - start)) * 1048576 + length - 1) / length)
            left = left - floor(before / 1048576) * weight
              - floor((before % 1048576 * weight + 1048575) / 1048576)
          end
          room = math.min(room, left - usedOf(P[b + 4]))
        elseif kind == 6 and P[b + 4] == 0 then
          room = math.min(room, creditOf(i))
        elseif kind == 7 and P[b + 5] >= 0 then
          room = math.min(room, creditOf(i) + max(0, P[b + 5] - usedOf(P[b + 4])))
        end
      end
    end
    return max(0, room)
  end
  -- From the grants that are there; says what they did not cover.
  burn = function(i, units)
    local b = itemsAt + (i - 1) * 8
    local rest = math.min(units, creditOf(i))
    local beyond = units - rest
    for d = P[b + 5], P[b + 5] + P[b + 6] - 1 do
      local burnt = math.min(rest, leftOf(d))
      if burnt > 0 then
        local c = cellsAt + (P[drawsAt + (d - 1) * 9] - 1) * 6
        if not count(i, P[c], P[c + 5], P[c + 1], P[c + 2], burnt, 0, false) then
          return nil
        end
        spent[#spent + 1] = {i, P[drawsAt + (d - 1) * 9 + 7], burnt}
        rest = rest - burnt
      end
    end
    return beyond
  end
  owe = function(i, units)
    local deficit = P[itemsAt + (i - 1) * 8 + 7]
    if deficit == 0 then
      return true
    end
    local c = cellsAt + (deficit - 1) * 6
    return count(i, P[c], P[c + 5], P[c + 1], P[c + 2], units, 0, false)
  end
end

-- One item: false where more than there is needs a plan, a number to reply with where it is
-- refused.
local clamped = false
local function settleItem(i)
  local item, used = hold.items[i], actual[i]
  local within = late and 0 or math.min(used, item[3])
  local excess, more, owed = used - within, 0, 0
  local burnable, rest = false, within
  for k = 1, #hold.counts do
    local c = hold.counts[k]
    burnable = burnable or (c[1] == i and (c[6] == 3 or c[6] == 1))
    rest = rest - (c[1] == i and c[6] == 3 and c[7] or 0)
  end
  if excess > 0 or late or (burnable and rest > 0) then
    if excess > 0 and not late and hold.overrun == 0 and i <= hold.asked then
      return {14, 5}
    end
    if not P then
      local answer = {18, int(hold.created)}
      for k = 1, #hold.items do
        answer[k + 2] = hold.items[k][1]
      end
      return answer
    end
    more = late and excess or math.min(excess, roomOf(i))
    if hold.overrun == 2 and not late then
      owed = math.min(excess - more, hold.bound - item[7])
      item[7] = item[7] + owed
    end
  end
  rest = within
  local good = true
  for k = 1, #hold.counts do
    local c = hold.counts[k]
    if c[1] == i and c[6] == 3 then
      local take = math.min(rest, c[7])
      if take > 0 then
        good = good and count(i, c[2], c[3], c[4], c[5], take, -take, false)
        c[7], rest = c[7] - take, rest - take
        spent[#spent + 1] = {i, sub(c[3], 2), take}
      end
    end
  end
  -- What was held beyond every grant is covered by those that have something by now.
  local beyond, owing = 0, owed
  if more > 0 or (burnable and rest > 0) then
    beyond = burn(i, burnable and rest + more or more)
    good = good and beyond
    -- Late, it is owed where nothing may be had beyond the grants.
    if good and late and prepaid(i) then
      owing, beyond = beyond, 0
    end
  end
  if owing > 0 then
    good = good and owe(i, owing)
  end
  if not good then
    return {10}
  end
  item[3], over[i] = item[3] - within, burnable and rest > 0 and beyond or rest + beyond
  charged[i] = within + more + owed
  for k = 1, #hold.counts do
    local c = hold.counts[k]
    if c[1] == i and c[6] == 0 then
      good = good and count(i, c[2], c[3], c[4], c[5], charged[i], -within, true)
      c[7] = c[7] - within
    elseif c[1] == i and c[6] == 1 then
      good = good and count(i, c[2], c[3], c[4], c[5], over[i], -rest, false)
      c[7] = c[7] - rest
    end
  end
  if burnable and over[i] > 0 then
    spent[#spent + 1] = {i, '', over[i]}
  end
  clamped = clamped or used > within + more
  for p = 1, #hold.pricings do
    local price = hold.pricings[p]
    if price[1] == i then
      local units = price[3] == 0 and charged[i] or over[i]
      local cell, slot = slotOf(1, item[1] .. '|' .. price[6], price[7])
      local cost = chargeOf(units, slot and cell[slot] or 0, price[4], price[5])
      local target = price[2]
      if cost > LARGEST or derived[target] + cost > LARGEST then
        return {10}
      end
      derived[target], named[target] = derived[target] + cost, true
      charges[#charges + 1] = {price[9], price[10], units, cost, target}
      good = good and count(i, 1, price[6], price[7], price[8], units, 0, false)
    end
  end
  return not good and {10} or nil
end
local reason = kind == RELEASE and 8 or kind == EXTEND and 9 or 5
if kind == SETTLE then
  for pass = 1, 2 do
    for i = 1, #hold.items do
      if (isTarget[i] or false) == (pass == 2) and named[i] then
        actual[i] = (actual[i] or 0) + derived[i]
        if actual[i] > LARGEST then
          return {10}
        end
        local refusal = settleItem(i)
        if refusal then
          return refusal
        end
      end
    end
  end
  reason = late and 7 or clamped and 6 or 5
end

-- What is left of the hold.
local ends = late or kind == RELEASE or (kind == SETTLE and A[12] == 1)
if kind == EXTEND then
  hold.expires = max(hold.expires, ms + A[13])
  renew(hold)
end
if ends and not free(hold, epoch) then
  return {10}
end
local births, mask, states, told = {}, 0, '', {0, '', int(ms), ''}
-- include: bodies
for i = 1, #hold.items do
  local item = hold.items[i]
  states = states .. encode('', -1, charged[i], ends and 0 or item[3], -1)
  if named[i] and item[4] == 1 then
    local prices = {}
    for k = 1, #charges do
      if charges[k][5] == i then
        prices[#prices + 1] = charges[k]
      end
    end
    local body = bodyOf(hold.subject, item[1], item[5], item[6], counted[i], prices, ARGV[7],
      reservation)
    births[#births + 1] = {i - 1, actual[i], charged[i], actual[i] - charged[i], body}
    mask = mask + 2 ^ (i - 1)
    told[#told + 1] = body
  end
end
local tail = {-1, ends and 0 or hold.expires, hold.asked, #hold.items}
for i = 1, #hold.items do
  tail[#tail + 1], tail[#tail + 2], tail[#tail + 3] = hold.items[i][1], actual[i] or 0, charged[i]
end
tail[#tail + 1] = #spent
for k = 1, #spent do
  tail[#tail + 1], tail[#tail + 2], tail[#tail + 3] = unpack(spent[k])
end
tail[#tail + 1], tail[#tail + 2] = 0, 0
local first = #births > 0 and (tonumber(M[2]) or 0) + 1 or 0
-- A caller may have come without a configuration: what is told is that of the account.
told[2] = print .. encode(reason, ms, tonumber(M[4] or '0'), tonumber(header[2] or '0'), epoch,
  first, mask, 0, 0, '', -1, #hold.items) .. states .. encode(unpack(tail))

writeRows()
if late then
  bury(KEYS[HOLDS + 3], reservation, encode(1), ms + LATE)
elseif ends then
  bury(KEYS[HOLDS + 3], reservation, encode(kind == RELEASE and 2 or 1), ms + LATE)
  keepHold(reservation, nil, nil, was)
else
  hold.settles = hold.settles + (kind == SETTLE and 1 or 0)
  told[4] = packHold(hold)
  keepHold(reservation, told[4], hold.expires + GRACE, was)
end
schedule(string.match(ARGV[6], '^[^/]*'), hn)
remember(told[2], #births)
bear(births)
return told
