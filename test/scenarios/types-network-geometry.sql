-- Network addresses, geometry (box has ';' between array elements), bits, uuid and money.
-- setup
create table network (id int primary key, i inet, c cidr, m macaddr, m8 macaddr8, u uuid);
insert into network values
  (1, '192.168.1.5', '10.0.0.0/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', '00000000-0000-0000-0000-000000000000'), (2, '192.168.1.5/24', '0.0.0.0/0', 'ff:ff:ff:ff:ff:ff', 'ff:ff:ff:ff:ff:ff:ff:ff', 'FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF'),
  (3, '::1', '2001:db8::/32', null, null, null), (4, '::ffff:1.2.3.4/96', '::/0', '00:00:00:00:00:00', '00:00:00:00:00:00:00:00', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'), (5, null, null, null, null, null);
create table geometry (id int primary key, p point, l line, s lseg, b box, h path, g polygon, c circle);
insert into geometry values
  (1, '(1,2)', '{1,2,3}', '[(1,2),(3,4)]', '(1,2),(3,4)', '[(1,2),(3,4)]', '((0,0),(1,0),(1,1))', '<(1,2),3>'), (2, '(-0,NaN)', '{1,-1,0}', '[(0,0),(0,0)]', '(NaN,1),(2,3)', '((1,2),(3,4))', '((0,0))', '<(0,0),0>'),
  (3, '(Infinity,-Infinity)', '{0.1,0.2,0.30000000000000004}', '[(1e300,5e-324),(3,4)]', '(0.1,0.2),(0.3,0.4)', '((1,2))', '((1e22,1),(2,3))', '<(1,2),Infinity>'), (4, null, null, null, null, null, null, null);
create table bits (id int primary key, b1 bit, b8 bit(8), v bit varying, v4 varbit(4), m money);
insert into bits values (1, '0', '00000000', '', '', 0), (2, '1', '10101010', repeat('10', 5000)::varbit, '1', -12.34), (3, null, null, null, null, null), (4, '1', '11111111', '1', '0000', '92233720368547758.07'), (5, '0', '00000001', '0', '1', '-92233720368547758.08');
create table as_arrays (id int primary key, i inet[], c cidr[], m macaddr[], m8 macaddr8[], u uuid[], p point[], l line[], s lseg[], b box[], h path[], g polygon[], k circle[], b8 bit(3)[], v varbit[], mo money[]);
insert into as_arrays values
  (1, '{192.168.1.5,::1,NULL}', '{10.0.0.0/8,NULL}', '{08:00:2b:01:02:03,NULL}', '{08:00:2b:01:02:03:04:05}', '{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11,NULL}', array['(1,2)', null, '(-0,NaN)']::point[], array['{1,2,3}']::line[],
   array['[(1,2),(3,4)]']::lseg[], '{(1,2),(3,4);NULL;(5,6),(7,8)}', array['[(1,2),(3,4)]', '((1,2))']::path[], array['((0,0),(1,0),(1,1))']::polygon[], array['<(1,2),3>']::circle[], '{101,NULL}', '{1,"",NULL}', array[1.5, null, -2]::money[]),
  (2, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'), (3, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null);
insert into as_arrays (id, b, p, mo) values (4, '[2:3]={(1,2),(3,4);(5,6),(7,8)}', '{{"(1,2)"},{"(3,4)"}}', '{{1},{2}}'), (5, '{{(1,2),(3,4);(1,2),(3,4)};{(5,6),(7,8);NULL}}', null, null);
-- both ways: network, geometry, bits, as_arrays

-- live
create table by_uuid (u uuid primary key, i inet);
insert into by_uuid select u, i from network where u is not null;
update by_uuid set i = '1.2.3.4' where u = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11';
update by_uuid set u = gen_random_uuid() where i = '192.168.1.5';
delete from by_uuid where u = 'ffffffff-ffff-ffff-ffff-ffffffffffff';
