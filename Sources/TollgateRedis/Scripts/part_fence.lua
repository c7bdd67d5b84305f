-- The fence of all scripts but `decide`: nil, or the FENCED reply. KEYS[1] is the bucket's meta,
-- ARGV[1] the text its field `f` must equal, ARGV[2] the highest sequence the caller has seen.
local function fenced(f, seq)
  if f ~= ARGV[1] or (tonumber(seq) or 0) < tonumber(ARGV[2]) then
    return {2, f, seq}
  end
end
