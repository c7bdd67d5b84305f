// Refunds on the request path: parked until the `Corrector` has the ledger's word.

import TollgateCore

extension Enforcer {
  func sendRefund(_ request: Request) {
    guard let errand = RefundErrand(request) else {
      return finish(request, .error(.badRequest, "a refund names the operation that it corrects"))
    }
    park(request, .refund(errand.key)) { $0.refund(errand) }
  }

  func refunded(_ key: RefundErrand.Key, _ outcome: Outcome) {
    for request in waiting.removeValue(forKey: .refund(key)) ?? [] { finish(request, outcome) }
  }
}
