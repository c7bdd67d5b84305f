-- One operation's id: whether it was decided before, and remembering it. KEYS[3] is its slice in its
-- class, KEYS[4] the one in the other class; M are meta's fields f, seq, t, gv, ack, nb, om, ov, hm,
-- hv and the two slices' bytes. Needs: journal.
local recordKey, recordClass, sliceField = KEYS[3], class, class .. format('%d', slice)
local recordBytes, record = M[11], false

-- nil: it is new; else the reply. `isPost`: units let through elsewhere count although their id was
-- denied here. `isVouched`: the ledger was asked, and does not know it, however old it is.
local function known(isPost, isVouched)
  local horizon = tonumber(M[class == 'm' and 9 or 10]) or 0
  if not isVouched and (ms - opTime > window or opTime < horizon) then
    return {4}
  end
  if opTime - ms > 60000 then
    return {5}
  end
  record = call('HGET', KEYS[3], id)
  if not record and M[12] then
    record = call('HGET', KEYS[4], id)
    if record then
      recordKey, recordClass = KEYS[4], class == 'm' and 'v' or 'm'
      recordBytes, sliceField = M[12], recordClass .. format('%d', slice)
    end
  end
  if not record then
    return nil
  end
  for word = 0, 3 do
    local at = word * 4
    if sub(record, at + 1, at + 4) ~= sub(print, at + 1, at + 4) then
      return {3, word}
    end
  end
  local reason = isPost and decode(sub(record, 17)) or 0
  if reason < 16 or reason == 28 then
    return {1, record}
  end
end

-- Whether there is no room for another one.
local function isFull(moneyMax, volumeMax)
  if class == 'm' then
    return (tonumber(M[7]) or 0) >= moneyMax
  end
  return (tonumber(M[8]) or 0) >= volumeMax * 1.25
end

-- Writes the answer, and meta with it.
local function remember(answer, births)
  set(recordKey, {id, answer}, {record})
  if not recordBytes then
    write(nil, 'PEXPIREAT', recordKey, int((slice + 1) * 120000 + 90000000))
  end
  local grown = #answer - (record and #record or -80)
  local total = recordClass == 'm' and 7 or 8
  set(KEYS[1], {'seq', int((tonumber(M[2]) or 0) + births), 't', int(now),
    recordClass == 'm' and 'om' or 'ov', int((tonumber(M[total]) or 0) + grown),
    sliceField, int((tonumber(recordBytes) or 0) + grown)}, {M[2], M[3], M[total], recordBytes})
end

-- The last writes of a call: its deltas, {index, actual, charged, absorbed, body} each.
local function bear(births)
  local seq = tonumber(M[2]) or 0
  for i = 1, #births do
    local b = births[i]
    local r = try('XADD', KEYS[2], e .. '-' .. format('%.0f', seq + i), 'd',
      id .. encode(1, b[1], ms, b[2], b[3], b[4]), 'b', b[5])
    if type(r) == 'table' then
      if i > 1 then
        unappend(KEYS[2], e, seq, i - 1)
      end
      abort(r)
    end
  end
end
