// Work.java TURNS: run from source: the compiler itself, then its program under HotSpot
import java.util.*;
import java.util.stream.*;

public class Work {
    interface Shape { double area(); }
    record Square(double a) implements Shape { public double area() { return a * a; } }
    record Disc(double r) implements Shape { public double area() { return 3 * r * r; } }

    public static void main(String[] args) throws Exception {
        long sum = 0;
        for (int t = 0; t < Integer.parseInt(args[0]); t++) {
            int[] a = new Random(t).ints(50000, 0, 100000).toArray();
            Arrays.sort(a);
            for (int i = 0; i < a.length; i++) sum = sum * 31 + a[i];
            Map<String, Integer> m = new HashMap<>();
            for (int x : a) m.merge("k" + x % 997, 1, Integer::sum);
            sum += new TreeMap<>(m).toString().hashCode();
            List<Shape> s = IntStream.range(0, 20000).mapToObj(i -> i % 3 == 0 ? new Disc(i) : new Square(i)).collect(Collectors.toList());
            sum += (long) s.stream().mapToDouble(Shape::area).sum();
            sum += IntStream.range(0, 100000).parallel().map(i -> i * i % 1009).sum();
            double[] d = new double[100000];
            for (int i = 0; i < d.length; i++) d[i] = Math.sin(i) * Math.sqrt(i);
            for (double x : d) sum += Double.doubleToLongBits(x) >>> 40;
            sum += new java.math.BigInteger("123456789").pow(500).mod(new java.math.BigInteger("1000000007")).intValue();
        }
        System.out.println(sum);
    }
}
