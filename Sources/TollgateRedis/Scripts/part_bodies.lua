-- The body of a usage delta (DeltaBody.swift). What the sidecar knows of it comes as bytes
-- (`common`, fields 5 to 8); what only the script knows is put around it.
local function fieldOf(tag, bytes)
  return struct.pack('<I2I2', tag, #bytes) .. bytes
end
local function shortText(text)
  return struct.pack('B', #text) .. text
end
local function placeOf(level, code, start, ending)
  return struct.pack('B', level) .. shortText(code) .. struct.pack('<i8i8', start, ending)
end

-- `counts`: {level, code, start, end, amount, whole}; `whole` ones got all that was charged.
-- `charges`: {rate, from, units, charge}. Two counts of one counter are one.
local function bodyOf(subject, feature, first, last, counts, charges, common, corrects)
  local cells, parts, seen, shares = {}, {}, {}, {}
  for i = 1, #counts do
    local c = counts[i]
    local place = placeOf(c[1], c[2], c[3], c[4])
    if c[6] then
      if not seen[place] then
        seen[place] = true
        cells[#cells + 1] = place
      end
    elseif shares[place] then
      shares[place] = shares[place] + c[5]
    else
      shares[place] = c[5]
      parts[#parts + 1] = place
    end
  end
  local n = 0
  for i = 1, #parts do
    local amount = shares[parts[i]]
    if amount ~= 0 then
      n = n + 1
      parts[n] = parts[i] .. struct.pack('<i8', amount)
    end
  end
  local prices = {}
  for i = 1, #charges do
    local c = charges[i]
    prices[i] = shortText(c[1]) .. struct.pack('<i8i8i8', c[2], c[3], c[4])
  end
  return fieldOf(1, subject) .. fieldOf(2, feature) .. fieldOf(3, struct.pack('<i8i8', first, last))
    .. fieldOf(4, struct.pack('B', #cells) .. table.concat(cells)) .. common
    .. (n > 0 and fieldOf(9, struct.pack('B', n) .. table.concat(parts, '', 1, n)) or '')
    .. (prices[1] and fieldOf(10, struct.pack('B', #prices) .. table.concat(prices)) or '')
    .. (corrects and fieldOf(11, corrects) or '')
end
