-- The fence of all scripts but `decide`: nil, or the FENCED reply. KEYS[1] is the bucket's meta,
-- ARGV[1] the text its field `f` must equal, ARGV[2] the highest sequence the caller has seen and,
-- after a space, the latest time of a write it heard of: denials move nothing but that.
local function fenced(f, seq, t)
  local seen, reached = string.match(ARGV[2], '^(%d+) (%d+)$')
  if f ~= ARGV[1] or (tonumber(seq) or 0) < tonumber(seen)
      or (tonumber(t) or 0) < tonumber(reached) then
    return {2, f, seq}
  end
end
