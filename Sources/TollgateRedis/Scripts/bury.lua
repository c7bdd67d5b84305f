#!lua flags=allow-oom
-- Writes down that reservations have ended, as a sidecar remembers that took part in their ends:
-- from then on nobody brings them into an epoch.
--
-- KEYS  1 meta · then per reservation where ended ones of its hour lie, and its account's holds
-- ARGV  1 fence text · 2 seen sequence · then per reservation its id, and how it ended (1
--       committed, 2 released)
-- Reply {0, i...}: which of them, counted from 1, are held here, and are to be ended by
--       `represent` · {2, f, seq}
--
-- Invariants: an end that stands stays as it is, only what had expired in the meantime is what it
--   was before: committed, or released. Moves no counter, needs no account.
-- Complexity: O(reservations).
-- include: base, journal, fence, hold, begin
local held, new = {0}, {}
for i = 3, #ARGV, 2 do
  local lies = call('HGET', KEYS[i - 1], ARGV[i])
  local state = lies and decode(lies) or 0
  if state ~= 1 and state ~= 2 then
    new[#new + 1] = i
  end
  if call('HEXISTS', KEYS[i], ARGV[i]) == 1 then
    held[#held + 1] = (i - 1) / 2
  end
end
for k = 1, #new do
  local i = new[k]
  bury(KEYS[i - 1], ARGV[i], encode(tonumber(ARGV[i + 1])), ms + LATE)
end
if new[1] then
  set(KEYS[1], {'t', int(now)}, {M[3]})
end
return held
