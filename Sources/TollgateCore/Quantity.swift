// Amounts are whole numbers. A quantity fits both a Swift Int64 and a Lua double exactly; that
// bound is asserted on both sides (DESIGN promise 9).

public enum Quantity {
  /// 2^53 − 1: the largest magnitude that a Lua number holds exactly.
  public static let maximum: Int64 = 9_007_199_254_740_991

  public static func isValid(_ value: Int64) -> Bool { value >= -maximum && value <= maximum }

  /// Addition that answers nil where the result leaves the quantity range.
  public static func adding(_ a: Int64, _ b: Int64) -> Int64? {
    let (sum, overflow) = a.addingReportingOverflow(b)
    return overflow || !isValid(sum) ? nil : sum
  }
}
