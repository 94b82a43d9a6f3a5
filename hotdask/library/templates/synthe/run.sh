set -e
interpolate-atmosphere {teff:.1f} {logg:.3f} {fe_h:+.3f} > deck6
cat header.mod deck6 > model

ln -s {folder}/molecules.dat fort.2
ln -s {folder}/continua.dat fort.17
xnfpelsyn < model > xnfpelsyn.out
rm fort.2 fort.17
mv fort.10 xnf.dat

synbeg < synbeg.in > synbeg.out
for list in gf0400.100 gf0500.100 gf0600.100 gf0800.100 gf1200.100; do
  ln -s {folder}/$list fort.11
  rgfalllinesnew > $list.out
  rm fort.11
done

ln -s xnf.dat fort.10
ln -s {folder}/he1tables.dat fort.18
synthe > synthe.out

ln -s {folder}/molecules.dat fort.2
cp spectrv.in fort.25
spectrv < model > spectrv.out
rm fort.2

cp fort.7 fort.1
converfsynnmtoa > converfsynnmtoa.out
