/** Which database of which server. What is undefined says PostgreSQL's own environment: PGHOST, PGPORT, PGUSER, PGDATABASE. */
export interface DatabaseServer {
  /** Name, address, or the folder of a Unix socket. */
  host: string | undefined;
  port: number | undefined;
  user: string | undefined;
  database: string | undefined;
}

/**
 * Reads a URL as libpq does (https://www.postgresql.org/docs/current/libpq-connect.html, 34.1.1.2): `postgresql://user@host:port/database`, and for a Unix socket
 * `postgresql:///database?host=/run/postgresql&user=name`. Errors: Error with what is wrong; it never repeats the URL, which may hold a secret.
 */
export function readDatabaseUrl(text: string): DatabaseServer {
  if (!/^postgres(?:ql)?:\/\/[^,]*$/.test(text) || !URL.canParse(text) || !canDecode(text)) {
    throw new Error('must be postgresql://USER@HOST:PORT/DATABASE');
  }
  const { username, password, hostname, port, pathname, searchParams, hash } = new URL(text);
  if (password !== '' || searchParams.has('password')) {
    throw new Error('must not hold a password: put it into a file (database.passwordFile, or PGPASSFILE)');
  }
  const others = [...searchParams.keys()].filter((key) => key !== 'host' && key !== 'user');
  if (others.length > 0 || hash !== '') {
    throw new Error(
      'knows no parameters but host and user (TLS: database.ca; of several servers: the address behind which they are one)',
    );
  }
  const database = decoded(pathname.slice(1));
  return {
    host: searchParams.get('host') ?? decoded(hostname.replace(/^\[(.*)\]$/, '$1')),
    port: port === '' ? undefined : Number(port),
    user: searchParams.get('user') ?? decoded(username),
    database,
  };
}

function decoded(part: string): string | undefined {
  return part === '' ? undefined : decodeURIComponent(part);
}

function canDecode(text: string): boolean {
  try {
    decodeURIComponent(text);
    return true;
  } catch {
    return false;
  }
}
