import type { TlsSettings } from './http.js';
import type { Secret } from './secret.js';

/** One cloud and one project of it, and how to speak to them: what `readCloud` finds. */
export interface CloudSettings {
  /** Where it was read, for people: `cloud prod of /etc/openstack/clouds.yaml`. */
  source: string;
  auth: CloudAuth;
  /** Cinder's address instead of the catalogue's, with or without the project's id at its end. */
  endpoint?: string;
  region?: string;
  interface: 'public' | 'internal' | 'admin';
  tls: TlsSettings;
  /** What is allowed but ought not to be: for the log. */
  warnings: string[];
}

export type CloudAuth = PasswordAuth | ApplicationCredentialAuth | NoAuth;

/** A user or project by its id, or by its name in a domain. */
export type Named = { id: string } | { name: string; domain: Domain };
export type Domain = { id: string } | { name: string };

export interface PasswordAuth {
  type: 'password';
  url: string;
  user: Named;
  password: Secret;
  project: Named;
}

/** The credential holds its project. */
export interface ApplicationCredentialAuth {
  type: 'application-credential';
  url: string;
  credential: { id: string } | { name: string; user: Named };
  secret: Secret;
}

/** Cinder with `auth_strategy = noauth`, which believes whatever it is told: for laboratories. */
export interface NoAuth {
  type: 'noauth';
  endpoint: string;
  user: string;
  projectId: string;
}
