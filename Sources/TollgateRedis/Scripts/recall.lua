#!lua
-- Asks for units that others hold by leases: nothing is granted for a while, and each of them is told.
--
-- KEYS  1 meta · 2 account header
-- ARGV  1 fence text · 2 seen sequence and time · 3 epoch · 4 account · 5 lessee that asks (8 bytes)
--       6 what a lessee's channel begins with
--       7... wanted, each: what follows the account in the path, a space, field of a cell or rate
-- Reply {0, now, held by others, by the asker, in doubt, … the same of each that is wanted}
--       {2, f, seq} · {8} not seeded in this epoch
--
-- Invariants: nothing that is counted or held changes; lessees are told once within the time in which
--   nothing is granted. Complexity: O(fields of the header).
-- include: base, journal, fence, begin
local RECALL = 250
local flat = call('HGETALL', KEYS[2])
local epoch, mark, states, wanted, sums = nil, nil, {}, {}, {}
for i = 7, #ARGV do
  wanted[ARGV[i]] = i - 6
  sums[i - 6] = {0, 0, 0}
end
for i = 1, #flat, 2 do
  local name = flat[i]
  if name == 'e' then
    epoch = flat[i + 1]
  elseif name == '^r' then
    mark = flat[i + 1]
  elseif #name == 9 and sub(name, 1, 1) == '^' then
    local _, state = decode(flat[i + 1])
    states[sub(name, 2)] = state
  end
end
if epoch ~= ARGV[3] then
  return {8}
end
local others, told = {}, {}
for i = 1, #flat, 2 do
  local name = flat[i]
  local at = #name > 9 and sub(name, 1, 1) == '^' and wanted[sub(name, 10)]
  if at then
    local lessee, left = sub(name, 2, 9), decode(flat[i + 1])
    local place = lessee == ARGV[5] and 2 or states[lessee] == 0 and 1 or 3
    sums[at][place] = sums[at][place] + left
    if place == 1 and not told[lessee] then
      told[lessee] = true
      others[#others + 1] = lessee
    end
  end
end
if others[1] and (tonumber(mark) or 0) <= ms then
  set(KEYS[2], {'^r', int(ms + RECALL)}, {mark})
  set(KEYS[1], {'t', int(now)}, {M[3]})
  for i = 1, #others do
    local hex = string.gsub(others[i], '.', function(c)
      return format('%02x', string.byte(c))
    end)
    write(nil, 'PUBLISH', ARGV[6] .. hex, ARGV[4])
  end
end
local reply = {0, int(ms)}
for i = 1, #sums do
  for k = 1, 3 do
    reply[#reply + 1] = int(sums[i][k])
  end
end
return reply
