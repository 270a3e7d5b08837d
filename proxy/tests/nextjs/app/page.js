// Rendered for each request, as a page with a user's data is.
export const dynamic = 'force-dynamic';

export default function Page() {
  return <p id="version">{process.env.VERSION}</p>;
}
