-- work.lua TURNS
local sum = 0
for t = 1, tonumber(arg[1]) do
  local p = {}
  for i = 2, 30000 do p[i] = true end
  for i = 2, 173 do if p[i] then for j = i * i, 30000, i do p[j] = false end end end
  for i = 2, 30000 do if p[i] then sum = (sum * 31 + i) % 1000000007 end end
  local s = {}
  for i = 1, 3000 do s[#s + 1] = string.format("%d:%s", i * t % 97, ("x"):rep(i % 5)) end
  table.sort(s)
  local c = table.concat(s, ","):gsub("%d+", function(d) return d + 1 end)
  for w in c:gmatch("[^,]+") do sum = (sum + #w * w:byte(1)) % 1000000007 end
  local f = 0.5
  for i = 1, 30000 do f = 3.7 * f * (1 - f) end
  sum = sum + math.floor(f * 1e6)
end
print(string.format("%d", sum))
