-- What scripts begin with that need of the bucket's meta no more than its fence: is it the one that
-- the caller means, and what time is it? Time does not run backwards. Needs: fence.
local M = call('HMGET', KEYS[1], 'f', 'seq', 't')
local stop = fenced(M[1], M[2], M[3])
if stop then
  return stop
end
local now = max(clock(), tonumber(M[3]) or 0)
local ms = floor(now / 1000)
