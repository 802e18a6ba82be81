-- query.sql: a database at work, in memory.
create table item(id integer primary key, kind integer, name text, price real);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 40000)
insert into item select i, i * 7919 % 101, 'item ' || (i * 31 % 4099), (i * 17 % 1000) / 8.0 from n;
create index by_kind on item(kind, price);
create index by_name on item(name);
update item set price = price * 1.25 where kind % 3 = 0;
delete from item where id % 11 = 0;
select 'sqlite', (select sum(c * s) from (select kind, count(*) c, sum(price) s from item group by kind)),
  (select count(*) from item a join item b on a.name = b.name where a.kind < b.kind),
  (select group_concat(name) from (select distinct name from item where price > 120 order by name limit 5));
