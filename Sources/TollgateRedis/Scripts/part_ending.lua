-- What scripts that end or bring holds of one subject begin with: their keys and arguments lie alike
-- (`expire` has them). Needs: begin.
local OLD = true
local e, depth = ARGV[3], tonumber(ARGV[4])
local LEVELS, INDEX = 4, 5 + depth
local HOLDS = 5 + depth + (depth > 1 and 1 or 0)
local header = call('HMGET', KEYS[5], 'e', 'hn')
if header[1] ~= e then
  return {8}
end
