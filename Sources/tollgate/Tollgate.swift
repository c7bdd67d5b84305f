import ArgumentParser

import Histogram
import Yams

@main
struct Tollgate: ParsableCommand {}
