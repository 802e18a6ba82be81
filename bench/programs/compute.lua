-- compute.lua: work for LuaJIT's compiled code: numeric loops, strings, tables and methods, closures, FFI.
-- Prints "luajit CHECKSUM"; the argument scales it (100: about half a second natively).
local scale = (tonumber(arg[1]) or 100) / 100
local bit, ffi = require("bit"), require("ffi")
local sum = 0
local function mix(v)
    sum = bit.tobit(bit.bxor(bit.rol(sum, 5), bit.tobit(v)) + 0x9e3779b9)
end

local function mandelbrot(size)
    local inside = 0
    for py = 0, size - 1 do
        for px = 0, size - 1 do
            local cr, ci, zr, zi, n = 3 * px / size - 2, 2 * py / size - 1, 0, 0, 0
            while n < 64 and zr * zr + zi * zi < 4 do
                zr, zi, n = zr * zr - zi * zi + cr, 2 * zr * zi + ci, n + 1
            end
            inside = inside + n
        end
    end
    mix(inside)
end

local function sieve(limit)
    local composite, count = ffi.new("uint8_t[?]", limit + 1), 0
    for i = 2, limit do
        if composite[i] == 0 then
            count = count + 1
            for k = i + i, limit, i do composite[k] = 1 end
        end
    end
    mix(count)
end

local function strings(count)
    local parts, words = {}, {}
    for i = 1, count do
        parts[#parts + 1] = string.format("%d:%s", i, string.char(97 + i % 26))
        if #parts == 64 then
            local s = table.concat(parts, ",")
            for word in s:gmatch("%d+:(%a)") do words[word] = (words[word] or 0) + #s end
            mix(#s:gsub("1", "one"):upper())
            parts = {}
        end
    end
    for c = 97, 122 do mix(words[string.char(c)] or 0) end
end

local Point = {}
Point.__index = Point
function Point.new(x, y) return setmetatable({x = x, y = y}, Point) end
function Point:add(o) return Point.new(self.x + o.x, self.y + o.y) end
function Point:norm() return self.x * self.x + self.y * self.y end

local function objects(count)
    local list, total = {}, 0
    for i = 1, count do list[i % 1000 + 1] = Point.new(i % 17, i % 23):add(Point.new(1, i % 5)) end
    for round = 1, 20 do
        for _, p in ipairs(list) do total = total + p:norm() end
    end
    table.sort(list, function(a, b) return a:norm() < b:norm() end)
    mix(total)
    mix(list[1]:norm() + list[#list]:norm())
end

local function closures(count)
    local function counter(step)
        local n = 0
        return function(k) n = n + step * k return n end
    end
    local fs = {}
    for i = 1, 16 do fs[i] = counter(i) end
    local last = 0
    for i = 1, count do last = fs[i % 16 + 1](i % 7) end
    mix(last)
    local function fib(n) return n < 2 and n or fib(n - 1) + fib(n - 2) end
    mix(fib(24))
end

for _ = 1, math.max(1, math.floor(4 * scale)) do
    mandelbrot(160)
    sieve(400000)
    strings(30000)
    objects(150000)
    closures(1500000)
end
print("luajit " .. bit.tohex(sum))
