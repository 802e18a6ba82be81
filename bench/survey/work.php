<?php // work.php TURNS
$text = substr(file_get_contents('/bench/text'), 0, 300000); $sum = 0;
for ($t = 0; $t < (int)$argv[1]; $t++) {
    $c = array_count_values(str_word_count(strtolower($text), 1)); arsort($c); ksort($c);
    $sum += crc32(serialize($c)) + strlen(preg_replace('/([aeiou])(\w)/', '$2$1', $text)) + crc32(json_encode($c));
    for ($i = 0, $a = []; $i < 100000; $i++) { $a[$i & 4095] = ($i * 31 + $t) % 1009; $sum += $a[($i * 7) & 1023] ?? 1; }
    $sum += crc32(md5($text) . sha1($text) . hash('xxh3', $text) . hash('crc32c', $text) . hash('murmur3f', $text));
}
echo $sum, "\n";
