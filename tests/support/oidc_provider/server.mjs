// A real OpenID provider over TLS on loopback: node server.mjs PEM [SECONDS], one JSON line when it
// listens. PEM holds certificate and key; an access token lives SECONDS. GET /counts says how
// often the token endpoint was asked.
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import Provider from "oidc-provider";

const [file, seconds = "60"] = process.argv.slice(2);
const pem = readFileSync(file);
let handle = (_request, response) => response.writeHead(503).end();
const server = createServer({ key: pem, cert: pem }, (request, response) => handle(request, response));
const counts = { token: 0, refused: 0 };

server.listen(0, "127.0.0.1", () => {
  const issuer = `https://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: "companion",
        token_endpoint_auth_method: "none",
        application_type: "native",
        grant_types: [
          "authorization_code",
          "refresh_token",
          "urn:ietf:params:oauth:grant-type:device_code",
        ],
        response_types: ["code"],
        redirect_uris: ["http://127.0.0.1/callback"],
      },
    ],
    clientAuthMethods: ["none"],
    pkce: { required: () => true },
    features: {
      devInteractions: { enabled: true },
      deviceFlow: { enabled: true },
      revocation: { enabled: true },
    },
    rotateRefreshToken: true,
    issueRefreshToken: async (_context, client) => client.grantTypeAllowed("refresh_token"),
    ttl: {
      AccessToken: Number(seconds),
      AuthorizationCode: 60,
      RefreshToken: 3600,
      Session: 3600,
      Interaction: 3600,
      Grant: 3600,
      DeviceCode: 600,
      IdToken: 3600,
    },
    findAccount: async (_context, id) => ({ accountId: id, claims: async () => ({ sub: id }) }),
    cookies: { keys: ["tests"] },
  });
  // A service that is asked for tokens by this client alone; what it refuses is counted.
  provider.on("grant.success", () => (counts.token += 1));
  provider.on("grant.error", () => (counts.refused += 1));
  const answer = provider.callback();
  handle = (request, response) => {
    if (request.url === "/counts") response.end(JSON.stringify(counts));
    else answer(request, response);
  };
  console.log(JSON.stringify({ issuer }));
});
