#!lua flags=allow-oom
-- A lessee is over: its process is gone and everything that it let through is settled. Whatever call
-- of its is still on the way to this bucket, delayed by a network, does nothing any more; what it
-- holds is ended after this (`lease_end`), and stays ended.
--
-- KEYS  1 meta · 2 ids of the lessee's latest calls
-- ARGV  1 fence text · 2 seen sequence and time
-- Reply {0, now} · {2, f, seq}
--
-- Invariants: a call that was made before is still known by its id; all others are too old for as long
--   as one minted before could be young enough. Complexity: O(1).
-- include: base, journal, fence, begin
local WINDOW, SKEW = 600000, 60000
local memory = call('GET', KEYS[2])
local forgotten, calls = 0, ''
if memory then
  forgotten, calls = struct.unpack('>d', memory), sub(memory, 17)
end
local till = ms + WINDOW + 2 * SKEW
write(memory and {'SET', KEYS[2], memory, 'PXAT', int(struct.unpack('>d', memory, 9))}
  or {'UNLINK', KEYS[2]}, 'SET', KEYS[2],
  struct.pack('>dd', max(forgotten, ms + SKEW), till) .. calls, 'PXAT', int(till))
set(KEYS[1], {'t', int(now)}, {M[3]})
return {0, int(ms)}
