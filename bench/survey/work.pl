# work.pl TURNS: hashes, regular expressions, sort, sprintf, pack
use strict; use warnings;
my $turns = shift; my %h; my $sum = 0;
open my $f, '<', '/bench/text' or die; read $f, my $text, 300000; close $f;
for my $t (1 .. $turns) {
    $h{lc $_}++ for split /\W+/, $text;
    (my $u = $text) =~ s/([aeiou])(\w)/$2$1/g;
    $u =~ tr/a-z/b-za/;
    my @s = sort { $h{$b} <=> $h{$a} || $a cmp $b } keys %h;
    $sum = ($sum + unpack('%32C*', $u)) % 4294967291;
    $sum = ($sum * 31 + length(join ',', map { sprintf '%s=%05d', $_, $h{$_} } @s)) % 4294967291;
    my @m = (); for my $i (0 .. 199) { $m[$i] = [map { $_ * $i % 17 } 0 .. 199] }
    $sum += $m[$_ % 200][$_ * 7 % 200] for 0 .. 50000;
    $sum += crypt_like($t, $_) for 1 .. 3000;
}
sub crypt_like { my ($a, $b) = @_; return (($a << 5 ^ $b) & 0xffff) % 251 }
print "$sum ", scalar(keys %h), "\n";
