// Stands for Apple's header where there is none: the type that metal-cpp's declarations name.
#pragma once
using IOSurfaceRef = struct __IOSurface*;
