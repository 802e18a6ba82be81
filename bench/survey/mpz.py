# mpz.py BITS: GMP and MPFR
import sys
import gmpy2
from gmpy2 import mpz

n = int(sys.argv[1])
x = mpz(3) ** n
y = mpz(7) ** (n // 2)
print(hash(x * y), hash(x // y), hash(gmpy2.isqrt(x)), hash(gmpy2.gcd(x + 1, y - 1)), gmpy2.popcount(x), hash(gmpy2.fac(n // 20)))
print(gmpy2.next_prime(mpz(2) ** 300), gmpy2.powmod(3, x % 2 ** 4000, mpz(2) ** 2203 - 1) % 10 ** 50, x.digits(10)[:50])
gmpy2.get_context().precision = n // 20
print(str(gmpy2.const_pi())[-60:], str(gmpy2.exp(gmpy2.mpfr(1) / 3))[-60:], str(gmpy2.sin(gmpy2.mpfr(2)))[-60:])
