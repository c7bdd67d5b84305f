// Lists accounts by scanning the keys of account headers, bucket prefix by bucket prefix. SCAN
// gives no order and may repeat a key; it costs nothing while nobody lists. A listing is for
// people and imports, never for a decision.

import TollgateCore
import TollgateRedis

struct AccountScan: Sendable {
  let store: ColdStore
  let keys: KeySpace

  /// `cursor`: the SCAN cursor; nil starts.
  func page(after cursor: String?, limit: Int) async throws(AdminFailure) -> AccountPage {
    do throws(StoreFailure) {
      let pattern = "tg\(Deployment.keyVersion):\(keys.deployment.text):{*}:a:*"
      let start = cursor ?? "0"
      let reply = try await store.reply {
        RESPWriter.write(
          ["SCAN", .string(start), "MATCH", .string(pattern), "COUNT", .integer(Int64(limit))],
          to: &$0)
      }
      guard let parts = reply.array, parts.count == 2, let next = parts[0].text,
        let found = parts[1].array
      else { throw .refused(reply.error ?? "unexpected reply to SCAN") }
      var entries: [AccountPage.Entry] = []
      for key in found {
        guard let text = key.text, let range = text.range(ofFirst: "}:a:"),
          let subject = try? Subject(String(text[range.upperBound...])), subject.depth == 1
        else { continue }
        let header = try await store.header(account: subject)
        // One that was only looked at is not an account yet.
        if header.lookedAt != nil && (header.version ?? 0) == 0 { continue }
        guard var config = AccountConfig(stored: header.config ?? "") else { continue }
        config.version = header.version ?? 0
        entries.append(AccountPage.Entry(account: subject, config: config))
      }
      return AccountPage(
        entries: entries.sorted { $0.account < $1.account }, next: next == "0" ? nil : next)
    } catch {
      throw LiveBackend.failure(error)
    }
  }
}

extension String {
  fileprivate func range(ofFirst needle: String) -> Range<String.Index>? {
    var start = startIndex
    while start < endIndex {
      if self[start...].hasPrefix(needle) { return start..<index(start, offsetBy: needle.count) }
      start = index(after: start)
    }
    return nil
  }
}
