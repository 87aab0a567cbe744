"use strict";

// What the page of a registry does, by https://distribution.github.io/distribution/spec/auth/token/.
// ?registry=URL   the registry; without it the one at the page's own address
// ?login=browser  the browser asks for name and password, not the page

const options = new URLSearchParams(location.search);
const registry = options.get("registry") ?? location.origin;
const manifests = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
const element = (id) => document.getElementById(id);

function parse(challenge, scheme) {
  if (!challenge?.startsWith(`${scheme} `)) throw new Error(`the challenge is not ${scheme}: ${challenge}`);
  return Object.fromEntries([...challenge.matchAll(/(\w+)="([^"]*)"/g)].map(([, name, value]) => [name, value]));
}

async function askIssuer(url) {
  if (options.get("login") !== "browser") {
    const credentials = btoa(`${element("user").value}:${element("password").value}`);
    // "omit": else the browser would open its login box after a wrong password, where all is at one origin.
    return fetch(url, { headers: { Authorization: `Basic ${credentials}` }, credentials: "omit" });
  }
  const answer = await fetch(url, { credentials: "omit" });
  if (answer.status !== 401) return answer;
  parse(answer.headers.get("WWW-Authenticate"), "Basic");
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("GET", url);
    request.withCredentials = true;
    request.onload = () => resolve(new Response(request.response, { status: request.status }));
    request.onerror = () => reject(new TypeError("the browser did not send it"));
    request.send();
  });
}

async function fetchToken({ realm, service, scope }) {
  const answer = await askIssuer(`${realm}?${new URLSearchParams({ service, scope })}`);
  const body = await answer.json();
  if (answer.ok) return body.token;
  throw new Error(`${answer.status} ${body.error_description}, request ${answer.headers.get("X-Request-Id")}`);
}

async function ask(method, path, headers = {}) {
  const answer = await fetch(registry + path, { method, headers });
  if (answer.status !== 401) return answer;
  const token = await fetchToken(parse(answer.headers.get("WWW-Authenticate"), "Bearer"));
  return fetch(registry + path, { method, headers: { ...headers, Authorization: `Bearer ${token}` } });
}

async function listRepositories() {
  const answer = await ask("GET", "/v2/_catalog?n=100");
  const { repositories } = await answer.json();
  if (!repositories) throw new Error(`${answer.status} for the list of repositories`);
  show("repositories", repositories, listTags);
}

async function listTags(repository) {
  const answer = await ask("GET", `/v2/${repository}/tags/list`);
  const { tags } = await answer.json();
  show("tags", tags ?? [], (tag) => deleteManifest(repository, tag));
}

async function deleteManifest(repository, tag) {
  const found = await ask("HEAD", `/v2/${repository}/manifests/${tag}`, { Accept: manifests });
  const digest = found.headers.get("Docker-Content-Digest");
  const answer = await ask("DELETE", `/v2/${repository}/manifests/${digest}`);
  if (answer.status !== 202) throw new Error(`${answer.status} for deleting ${digest}`);
  await listTags(repository);
}

function show(id, names, act) {
  const items = names.map((name) => {
    const item = document.createElement("li");
    item.textContent = name;
    item.onclick = () => during(() => act(name));
    return item;
  });
  element(id).replaceChildren(...items);
}

async function during(work) {
  element("status").textContent = "busy";
  try {
    await work();
    element("status").textContent = "ready";
  } catch (error) {
    element("status").textContent = String(error);
  }
}

element("login").onsubmit = (event) => {
  event.preventDefault();
  during(listRepositories);
};
