// Whose journal it is. What one deployment let through must not be posted in the Redis and the
// books of another that was started at the same path, so it stands in the file before anything
// else; a file that holds nothing may be anybody's.

import TollgateCore

/// A line of the fallback journal: `checksum json`, like its records.
struct JournalOwner: Hashable, Sendable {
  let id: Name
  let buckets: Int

  init(_ deployment: Deployment) {
    id = deployment.id
    buckets = deployment.buckets
  }

  /// `line` without its newline.
  init?(line: ArraySlice<UInt8>) {
    guard let document = FallbackRecord.document(line: line),
      case .string(let text)? = document["deployment"], let id = try? Name(text),
      case .integer(let buckets)? = document["buckets"]
    else { return nil }
    self.id = id
    self.buckets = Int(clamping: buckets)
  }

  var line: [UInt8] {
    FallbackRecord.line(
      .fields(["deployment": .string(id.text), "buckets": .integer(Int64(buckets))]))
  }

  func differences(from deployment: Deployment) -> [Deployment.Difference] {
    var recorded = deployment
    recorded.id = id
    recorded.buckets = buckets
    return deployment.differences(from: recorded)
  }

  /// Why a sidecar does not start, and what to do.
  static func refusal(of path: String, _ differences: [Deployment.Difference]) -> String {
    "\(path): may hold what another deployment's sidecar let through and has not settled ("
      + differences.map(\.description).joined(separator: "; ")
      + "); start once with that deployment's configuration and stop, so that it is settled (what "
      + "`tollgate fallback` lists there an operator decides), or remove the file, which abandons "
      + "what it holds"
  }
}
