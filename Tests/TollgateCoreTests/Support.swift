// Short ways to write catalogs, requests and instants in tests.

import Testing
import TollgateCore

func name(_ text: String) throws -> Name { try Name(text) }

/// Reads a catalog that must be good.
func catalog(_ json: String, sourceLocation: SourceLocation = #_sourceLocation) throws -> Catalog {
  switch CatalogReader.read(try Document(json: json)) {
  case .success(let catalog): return catalog
  case .failure(let problems):
    Issue.record("\(problems.map(\.description))", sourceLocation: sourceLocation)
    throw InvalidDocument(problems: problems)
  }
}

/// The problems of a catalog that must be bad, as `path: reason`.
func problems(_ json: String) throws -> [String] {
  guard case .failure(let problems) = CatalogReader.read(try Document(json: json)) else {
    return []
  }
  return problems.map { "\($0.path): \($0.reason)" }
}

/// One plan `p` over features `f` (metered) and `g` (not metered), with these limits.
func catalog(f: String, g: String = "[]") throws -> Catalog {
  try catalog(
    """
    {"levels": ["account", "member", "run"], "unknown_account": "deny",
     "features": {"f": {"metered": true}, "g": {"metered": false, "importance": "volume"}},
     "plans": {"p": {"f": \(f), "g": \(g)}, "empty": {}}}
    """)
}

func global(_ catalog: Catalog, bypasses: [Bypass] = []) -> GlobalConfig {
  GlobalConfig(version: 1, catalogVersion: 1, catalog: catalog, bypasses: bypasses)
}

func account(_ plan: String?, overrides: [Override] = [], frozen: Bool = false) throws
  -> AccountConfig
{
  AccountConfig(
    version: 1, plan: try plan.map { try Name($0) }, frozen: frozen, overrides: overrides)
}

func override(
  _ subject: String, _ limit: String, _ change: Override.Change, expires: Int64? = nil
) throws -> Override {
  Override(
    subject: try Subject(subject), limit: try Name(limit), change: change,
    expires: expires.map { WallTime(milliseconds: $0) }, reason: "test", author: "test")
}

/// 2026-11-21T05:00:00Z.
let noon = WallTime(milliseconds: 1_795_237_200_000)
