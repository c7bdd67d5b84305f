-- Takes the last n entries (after sequence `seq` of `epoch`) off a stream again, as if they had
-- never been added. XDEL alone would not do: the stream would refuse their ids from then on.
local function unappend(out, epoch, seq, n)
  if seq == 0 then
    try('UNLINK', out)
    return
  end
  local info = try('XINFO', 'STREAM', out)
  local added = n
  for i = 1, #info, 2 do
    if info[i] == 'entries-added' then
      added = info[i + 1]
    end
  end
  for i = 1, n do
    try('XDEL', out, epoch .. '-' .. format('%.0f', seq + i))
  end
  try('XSETID', out, epoch .. '-' .. format('%.0f', seq), 'ENTRIESADDED',
    format('%.0f', added - n))
end
