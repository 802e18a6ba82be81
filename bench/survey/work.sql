create table t(id integer primary key, k text, v real, b blob);
create index tk on t(k);
with recursive n(i) as (select 1 union all select i + 1 from n where i < @N@)
insert into t select i, 'k' || (i * 7919 % 5003), i * 0.37, randomblob(0) from n;
begin;
update t set v = v * 1.5 + length(k) where id % 5 = 2;
delete from t where id % 13 = 4;
commit;
select count(*), total(v), min(k), max(k) from t;
select k, count(*) c, avg(v) from t group by k order by c desc, k limit 10;
select count(*) from t a join t b on a.k = b.k and a.id < b.id where a.id < 3000;
select json_group_array(v) from (select round(v, 3) v from t order by v desc limit 20);
with w as (select id, sum(v) over (order by id rows between 5 preceding and current row) s, rank() over (partition by id % 7 order by v) r from t)
select total(s), total(r) from w;
create virtual table if not exists f using fts5(x);
insert into f select k || ' ' || id from t limit 2000;
select count(*) from f where f match 'k17 OR k99';
pragma integrity_check;
