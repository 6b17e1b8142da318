// node oidc-provider as the peer of the bench: client_credentials with private_key_jwt (ES256), ES256 access tokens
// (RFC 9068) for one resource, its own in-memory store. No policy, no durability, no audit: that is all it is asked for.
//
//   node server.mjs <port> <issuer> <resource> <scope> <file with {"clients": [{client_id, jwks}], "signing": jwk}>

import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'

import Provider from 'oidc-provider'

const [port, issuer, resource, scope, file] = process.argv.slice(2)
const { clients, signing } = JSON.parse(readFileSync(file, 'utf8'))

const provider = new Provider(issuer, {
  clients: clients.map(({ client_id, jwks }) => ({
    client_id,
    jwks,
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
    token_endpoint_auth_method: 'private_key_jwt',
    token_endpoint_auth_signing_alg: 'ES256',
    id_token_signed_response_alg: 'ES256',
  })),
  clientAuthMethods: ['private_key_jwt'],
  enabledJWA: { clientAuthSigningAlgValues: ['ES256'] },
  jwks: { keys: [signing] },
  scopes: [scope],
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: () => ({
        scope,
        audience: resource,
        accessTokenTTL: 300,
        accessTokenFormat: 'jwt',
        jwt: { sign: { alg: 'ES256' } },
      }),
    },
  },
})

createServer(provider.callback()).listen(Number(port), '127.0.0.1', () => console.log('ready'))
