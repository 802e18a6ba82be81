# work.rb TURNS
class V
  attr_reader :x, :y
  def initialize(x, y) = (@x, @y = x, y)
  def +(o) = V.new(@x + o.x, @y + o.y)
end
text = File.read("/bench/text", 200_000)
sum = 0
ARGV[0].to_i.times do |t|
  v = V.new(0, 0)
  20_000.times { |i| v += V.new(i, i ^ t) }
  h = text.scan(/\w+/).tally
  s = h.sort_by { |k, n| [-n, k] }.map { |k, n| "#{k}:#{n}" }.join(",")
  sum = (sum + s.sum + v.x + v.y + text.gsub(/[aeiou]+/) { |m| m.upcase }.hash % 1) % (2**61 - 1)
  sum += (1..300).inject(:*) % 1_000_003 + (0..5000).select(&:even?).map { |q| Math.sqrt(q) }.sum.to_i
end
puts sum
