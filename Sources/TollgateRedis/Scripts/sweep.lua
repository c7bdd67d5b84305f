#!lua flags=allow-oom
-- Drops slices of operation records: those older than the window, and the oldest of the volume
-- class while that class is above its ceiling.
--
-- KEYS  1 meta · 2... the slices named in ARGV 5...
-- ARGV  1 fence text · 2 seen sequence and time · 3 window ms · 4 volume bytes allowed
--       5... names of slices, class letter and number, oldest first
-- Reply {0, now, dropped, money horizon, volume horizon, {name, bytes, ...} of all that is left}
--       {2, f, seq}
--
-- Invariants: the horizon of a class moves to the end of every slice dropped, so an id whose record
--   is gone is too old, never new; money is never dropped before its window; the two newest
--   volume slices are never dropped before theirs; om and ov are the sums of the slices left.
--   Slices are unlinked last: a failure there leaves only garbage that expires by itself, and is
--   reported. Complexity: O(fields of meta + slices).
-- include: base, journal, fence
local F = call('HGETALL', KEYS[1])
local M = {}
for i = 1, #F, 2 do
  M[F[i]] = F[i + 1]
end
local stop = fenced(M.f or false, M.seq or false, M.t)
if stop then
  return stop
end
local ms = floor(max(clock(), tonumber(M.t) or 0) / 1000)
local window, ceiling = tonumber(ARGV[3]), tonumber(ARGV[4])
local horizon = {m = tonumber(M.hm) or 0, v = tonumber(M.hv) or 0}
local total = {m = tonumber(M.om) or 0, v = tonumber(M.ov) or 0}
local gone, names, unlinked = {'HDEL', KEYS[1]}, {}, {'UNLINK'}
local back = {'HSET', KEYS[1]}
for i = 5, #ARGV do
  local name = ARGV[i]
  local class, last = sub(name, 1, 1), (tonumber(sub(name, 2)) + 1) * 120000
  if M[name] and (last + window < ms
      or (class == 'v' and total.v > ceiling and last <= ms - 240000)) then
    total[class] = total[class] - tonumber(M[name])
    horizon[class] = max(horizon[class], last)
    gone[#gone + 1] = name
    back[#back + 1] = name
    back[#back + 1] = M[name]
    names[name] = true
    unlinked[#unlinked + 1] = KEYS[i - 3]
  end
end
local left = {}
for i = 1, #F, 2 do
  if string.find(F[i], '^[mv]%d+$') and not names[F[i]] then
    left[#left + 1] = F[i]
    left[#left + 1] = F[i + 1]
  end
end
if #gone > 2 then
  set(KEYS[1], {'hm', int(horizon.m), 'hv', int(horizon.v), 'om', int(total.m),
    'ov', int(total.v)}, {M.hm or false, M.hv or false, M.om or false, M.ov or false})
  write(back, unpack(gone))
  write(nil, unpack(unlinked))
end
return {0, int(ms), #gone - 2, int(horizon.m), int(horizon.v), left}
