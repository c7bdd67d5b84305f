#!lua
-- Claims, renews or gives up the shipper ownership of a bucket.
--
-- KEYS  1 owner
-- ARGV  1 who · 2 milliseconds, 0 to give up
-- Reply {0} · {11, owner, milliseconds left}
--
-- Not fenced: two owners at once cost work, not truth. Complexity: O(1).
-- include: base, journal
local owner = call('GET', KEYS[1])
if ARGV[2] == '0' then
  if owner == ARGV[1] then
    write(nil, 'UNLINK', KEYS[1])
  end
  return {0}
end
if owner and owner ~= ARGV[1] then
  return {11, owner, call('PTTL', KEYS[1])}
end
write(nil, 'SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {0}
