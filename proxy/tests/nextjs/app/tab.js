'use client';

import { useRouter } from 'next/navigation';
import { useEffect } from 'react';
import { act } from './actions';

// Parts of this build that the page loads only when it needs them.
const chunks = [() => import('./chunk-a'), () => import('./chunk-b'), () => import('./chunk-c')];

let loaded = false;

// What a tab does that stays open: at each step that the test announces, it loads a chunk for the first time, calls a
// server action, and loads everything again that its page is made of. If it navigates, it goes to another page and back.
async function tab(router) {
  if (loaded) return;
  loaded = true;
  let done = -1;
  for (;;) {
    const { step, navigates } = await (await fetch('/test/step', { cache: 'no-store' })).json();
    if (step === done) {
      await new Promise((wake) => setTimeout(wake, 50));
      continue;
    }
    done = step;
    let seen;
    try {
      seen = await use(step, navigates, router);
    } catch (error) {
      seen = { failed: String(error) };
    }
    await fetch('/test/seen', { method: 'POST', body: JSON.stringify({ step, ...seen }) });
  }
}

async function use(step, navigates, router) {
  const chunk = (await chunks[step]()).version;
  const small = await act('x');
  const large = await act('x'.repeat(50_000));
  const assets = [...document.querySelectorAll('script[src], link[rel=stylesheet]')].map((e) => e.src || e.href);
  const missing = [];
  for (const asset of assets) {
    const response = await fetch(asset, { cache: 'reload' });
    if (!response.ok) missing.push(asset);
  }
  let page;
  if (navigates) {
    page = await goTo('/other', 'other', router);
    await goTo('/', 'version', router);
  }
  return { chunk, small, large, assets: assets.length, missing, page };
}

// Navigates, and returns what the new page says.
async function goTo(path, id, router) {
  router.push(path);
  for (;;) {
    const element = document.getElementById(id);
    if (element) return element.textContent;
    await new Promise((wake) => setTimeout(wake, 20));
  }
}

export default function Tab() {
  const router = useRouter();
  useEffect(() => {
    tab(router);
  }, [router]);
  return null;
}
