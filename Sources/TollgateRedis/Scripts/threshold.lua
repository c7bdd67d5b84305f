#!lua
-- Notes that thresholds of one limit are reached, each with a delta of its own that moves nothing.
--
-- KEYS  1 meta · 2 outbox · 3 account header · 4 hash of a deeper subject
-- ARGV  1 fence text · 2 seen sequence · 3 epoch · 4 global version · 5 account version
--       6 field of the counter · 7 start of its period · 8 forgiven · 9 1: forgiven units count not
--       10 field of what was noted · 11 amount · 12 outbox entries allowed
--       13 … of each threshold, ascending: percent, units that reach it, operation id, body
-- Reply {0, epoch, first sequence, now, percent, …} those noted now · {2, f, seq} · {7} · {8}
--       {9, now} · {13}
--
-- Invariants: a threshold is noted once for a period and an amount; a larger amount, and a reset,
--   arm all of them again, a smaller amount none. What is only leased is not used. The counter itself is asked, so what was judged
--   on older numbers notes nothing that is not so. No counter is touched. Complexity: O(thresholds).
-- include: base, journal, append, fence, announce
local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'ack', 'gv')
local stop = fenced(M[1], M[2], M[3])
if stop then
  return stop
end
local H = call('HMGET', KEYS[3], 'e', 'v', '^')
local e = ARGV[3]
if H[1] ~= e then
  return {8}
end
if (tonumber(M[5]) or -1) ~= tonumber(ARGV[4]) or (tonumber(H[2]) or 0) ~= tonumber(ARGV[5]) then
  return {7}
end
local now = max(clock(), tonumber(M[3]) or 0)
local ms = floor(now / 1000)
local key = KEYS[4] or KEYS[3]
local row = call('HMGET', key, 'e', ARGV[6], ARGV[10])
local start, amount, forgiven = tonumber(ARGV[7]), tonumber(ARGV[11]), tonumber(ARGV[8])
if row[1] ~= e or not row[2] then
  return {9, int(ms)}
end
local first, settled, held, offset = decode(row[2])
if first ~= start then
  return {9, int(ms)}
end
if ARGV[9] == '1' then
  if offset ~= forgiven then
    return {7}
  end
  settled = settled - offset
end
-- What sidecars hold in stock is not used.
if H[3] then
  local flat, path = call('HGETALL', KEYS[3]), string.match(key, ':a:[^/]*(.*)$')
  local name = path .. ' ' .. ARGV[6]
  for i = 1, #flat, 2 do
    if sub(flat[i], 1, 1) == '^' and sub(flat[i], 10) == name then
      local left, from = decode(flat[i + 1])
      held = held - (from == start and left or 0)
    end
  end
end
local used, highest = settled + held, 0
if row[3] then
  local s, a, f, h = decode(row[3])
  if s == start and f == forgiven and amount <= a then
    highest, amount = h, a
  end
end
local seq = tonumber(M[2]) or 0
local reply, adds = {0, e, int(seq + 1), int(ms)}, {}
for i = 13, #ARGV, 4 do
  local percent = tonumber(ARGV[i])
  if percent > highest and used >= tonumber(ARGV[i + 1]) then
    adds[#adds + 1] = i
    reply[#reply + 1] = percent
  end
end
if #adds == 0 then
  return reply
end
if crowded(seq, M[4], ARGV[12]) then
  return {13}
end
set(key, {ARGV[10], encode(start, amount, forgiven, reply[#reply])}, {row[3]})
set(KEYS[1], {'seq', int(seq + #adds), 't', int(now)}, {M[2], M[3]})
for n, i in ipairs(adds) do
  local r = try('XADD', KEYS[2], e .. '-' .. int(seq + n), 'd',
    ARGV[i + 2] .. encode(6, tonumber(ARGV[i]), ms, 0, 0, 0), 'b', ARGV[i + 3])
  if type(r) == 'table' then
    unappend(KEYS[2], e, seq, n - 1)
    abort(r)
  end
end
return reply
